"""Preparing leaves no trace, and changes all or nothing."""

from __future__ import annotations

import pytest
import torch
from norm_checks import W4
from torch import Tensor, nn

from taskptq.hosts.registry import COUNTERPARTS
from taskptq.modules import QuantLinear
from taskptq.prepare import prepare
from taskptq.testing import tiny_batches, tiny_model


class Kind(nn.Linear):
    """What the test maps."""


class Off(QuantLinear):
    """A counterpart that computes something else."""

    def forward(self, x: Tensor, **kwargs: bool) -> Tensor:
        return super().forward(x, **kwargs) * 1.01


def test_nothing_changes_where_all_would_differ(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(COUNTERPARTS, f'{__name__}.Kind', f'{__name__}.Off')
    model = nn.Sequential(Kind(4, 4)).eval()
    weight = model[0].weight
    with pytest.raises(ValueError, match=r'no layer to quantize.*1\.00%'):
        prepare(model, W4, batch=torch.randn(3, 4))
    assert type(model[0]) is Kind
    assert model[0].weight is weight


def test_mode_generator_and_hooks_are_left_as_they_were() -> None:
    model, x = tiny_model('conv'), tiny_batches('conv')[0]

    def forward(m: nn.Module, batch: Tensor) -> Tensor:
        assert not m.training
        torch.rand(3)
        return m(batch)

    model.layer1.train()
    torch.manual_seed(0)
    prepare(model, W4, batch=x, forward=forward)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))
    assert model.layer1.training
    assert not model.head.training
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_failing_forward_changes_nothing() -> None:
    model = tiny_model('conv')
    before = {n: id(m) for n, m in model.named_modules()}
    with pytest.raises(RuntimeError):
        prepare(model, W4, batch=torch.randn(1, 2, 8, 8))
    assert before == {n: id(m) for n, m in model.named_modules()}
    for module in model.modules():
        assert not module._forward_hooks
