"""Counting calls: every layer runs by its own forward, and is left alone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from taskptq.prepare.watch import count_calls, no_fast_paths


class Shared(nn.Module):
    """One layer runs twice, one never."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(4, 4)
        self.idle = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(self.used(x))


def test_calls_are_counted_by_name() -> None:
    model, x = Shared(), torch.randn(2, 4)
    counts = count_calls(
        model, {'a': model.used, 'b': model.idle}, lambda: model(x)
    )
    assert counts == {'a': 2}
    assert counts['b'] == 0
    assert not model.used._forward_pre_hooks


def test_fused_encoder_layer_calls_its_children() -> None:
    """In eval mode torch's kernel would call none of them."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.randn(2, 5, 8)
    counts = count_calls(layer, dict(layer.named_children()), lambda: layer(x))
    assert counts['self_attn'] == counts['linear1'] == counts['norm2'] == 1
    assert torch.backends.mha.get_fastpath_enabled()


def test_everything_is_put_back_after_a_failure() -> None:
    model = Shared()
    # As mmcv's ConvModule keeps its fold on the fly.
    model.used.efficient_conv_bn_eval_forward = forward = object()

    def fail() -> None:
        assert model.used.efficient_conv_bn_eval_forward is None
        raise RuntimeError('stop')

    with pytest.raises(RuntimeError, match='stop'):
        count_calls(model, {'a': model.used}, fail)
    assert model.used.efficient_conv_bn_eval_forward is forward
    assert not model.used._forward_pre_hooks
    assert torch.backends.mha.get_fastpath_enabled()


def test_setting_of_the_caller_is_kept() -> None:
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with no_fast_paths(Shared()):
            pass
        assert not torch.backends.mha.get_fastpath_enabled()
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
