"""What the tables say about a module."""

from typing import Any

import pytest
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from taskptq.hosts import class_lookup as mapping
from taskptq.hosts.registry import BLOCKS
from taskptq.modules import QuantLinear


def test_lookup_takes_a_base_class_whose_forward_runs() -> None:

    class Same(nn.Linear):
        pass

    class Mine(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    class MyConv(nn.Conv2d):
        def _conv_forward(self, *args: Any) -> Tensor:
            return super()._conv_forward(*args) * 2

    assert mapping.lookup(nn.Linear(2, 2)) is QuantLinear
    assert mapping.lookup(Same(2, 2)) is QuantLinear
    assert mapping.lookup(Mine(2, 2)) is None
    assert mapping.lookup(MyConv(2, 2, 1)) is None
    assert mapping.lookup(nn.ReLU()) is None


def test_blocks_are_found_along_the_line_of_descent() -> None:

    class Mine(nn.TransformerEncoderLayer):
        pass

    assert mapping.is_a(Mine(4, 2), BLOCKS)
    assert not mapping.is_a(nn.Linear(2, 2), BLOCKS)


def test_attention_is_known_by_counterpart_or_name() -> None:

    class NonLocalBlock(nn.Module):
        pass

    assert mapping.is_attention(nn.MultiheadAttention(4, 2))
    assert mapping.is_attention(NonLocalBlock())
    assert not mapping.is_attention(nn.Linear(2, 2))


def test_replayed_input_of_a_roi_extractor() -> None:
    extractors = pytest.importorskip('mmdet.models.roi_heads.roi_extractors')
    pooling = {'type': 'RoIAlign', 'output_size': 7, 'sampling_ratio': 0}
    module = extractors.SingleRoIExtractor(pooling, 8, [4])
    assert mapping.replayed_input(module) == 'rois'
    assert mapping.replayed_input(nn.Linear(2, 2)) is None


def test_forward_decides_who_stands_for_a_class() -> None:
    from taskptq.testing.models import TinyBlock

    class Same(TinyBlock):
        pass

    class Other(TinyBlock):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    names = frozenset({mapping.dotted(TinyBlock)})
    assert mapping.has_forward_of(TinyBlock(2, 2), names)
    assert mapping.has_forward_of(Same(2, 2), names)
    assert not mapping.has_forward_of(Other(2, 2), names)
    patched = TinyBlock(2, 2)
    patched.forward = patched.forward
    assert not mapping.has_forward_of(patched, names)


def test_plain_class_is_what_baking_leaves() -> None:
    assert mapping.plain_class(nn.Linear(2, 2)) is nn.Linear
    layer = parametrizations.weight_norm(nn.Linear(2, 2))
    assert mapping.plain_class(layer) is nn.Linear
    assert mapping.lookup(layer) is QuantLinear
