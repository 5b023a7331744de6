"""Convolutions that pad to TensorFlow's 'same'."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from taskptq.core import quantizing
from taskptq.hosts import lookup
from taskptq.modules import counterpart_class

bricks = pytest.importorskip('mmcv.cnn.bricks.conv2d_adaptive_padding')


@pytest.mark.parametrize(
    'settings',
    [{}, {'stride': 2}, {'stride': (1, 2), 'dilation': 2}, {'groups': 4}],
)
@pytest.mark.parametrize('size', [(7, 8), (4, 9)])
@torch.no_grad()
def test_off_is_float_and_on_is_near(
    lab: Any, settings: Any, size: Any
) -> None:
    torch.manual_seed(0)
    layer = bricks.Conv2dAdaptivePadding(4, 8, 3, **settings)
    x = torch.randn(2, 4, *size)
    expected = layer(x)
    found = lookup(layer)
    assert found is not None
    quant: Any = counterpart_class(found, type(layer)).from_float(
        layer, scheme=lab.scheme(weight=8)
    )
    torch.testing.assert_close(quant(x), expected)
    lab.calibrate(quant, lambda m: m(x))
    with quantizing(quant):
        gap = (quant(x) - expected).abs().max() / expected.abs().max()
    assert 0 < gap < 0.03
