"""Parts of the hosts: each mechanism runs all of its products quantized."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')

from taskptq.calibration import calibrate
from taskptq.core import quantizing
from taskptq.prepare import QConfig, prepare
from taskptq.prepare.products import trace_products

BN: dict[str, Any] = {'type': 'BN'}


class Whole(nn.Module):
    """Holds a part of a host and passes it tensors."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(8, 8, 1)
        self.part = part

    def forward(self, inputs: Any) -> list[Tensor]:
        x, *others = inputs if isinstance(inputs, list) else [inputs]
        x = self.stem(x)
        out = self.part([x, *others]) if others else self.part(x)
        return list(out) if isinstance(out, list | tuple) else [out]


def image(size: int = 16) -> Tensor:
    return torch.randn(1, 8, size, size)


def beit() -> tuple[nn.Module, Any]:
    from mmseg.models.backbones.beit import BEiTAttention

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = BEiTAttention(8, 2, (4, 4))

        def forward(self, x: Tensor) -> Tensor:
            tokens = x.flatten(2).transpose(1, 2)
            return self.attention(torch.cat([tokens[:, :1], tokens], dim=1))

    return Tokens(), image(4)


def deformable_v1() -> tuple[nn.Module, Any]:
    from mmcv.ops import DeformConv2dPack

    return DeformConv2dPack(8, 8, 3, padding=1), image()


def deformable_v2() -> tuple[nn.Module, Any]:
    from mmcv.ops import ModulatedDeformConv2dPack

    return ModulatedDeformConv2dPack(8, 8, 3, padding=1), image()


def dynamic_filters() -> tuple[nn.Module, Any]:
    from mmseg.models.decode_heads.dm_head import DCM

    return DCM(3, True, 8, 8, None, BN, {'type': 'ReLU'}), image()


def dynamic_head() -> tuple[nn.Module, Any]:
    from mmdet.models.necks.dyhead import DyHead

    return DyHead(8, 16, num_blocks=1), [image(), image(8), image(4)]


def factorized() -> tuple[nn.Module, Any]:
    from mmseg.models.decode_heads.ham_head import Hamburger

    return Hamburger(8, {'MD_R': 4, 'rand_init': False}), image()


def non_local() -> tuple[nn.Module, Any]:
    from mmcv.cnn import NonLocal2d

    return NonLocal2d(8), image()


def switchable() -> tuple[nn.Module, Any]:
    from mmcv.ops import SAConv2d

    return SAConv2d(8, 8, 3, padding=1), image(16)


def switchable_deformable() -> tuple[nn.Module, Any]:
    from mmcv.ops import SAConv2d

    return SAConv2d(8, 8, 3, padding=1, use_deform=True), image(16)


def standardized() -> tuple[nn.Module, Any]:
    from mmcv.cnn.bricks.conv_ws import ConvAWS2d, ConvWS2d

    return nn.Sequential(ConvWS2d(8, 8, 3), ConvAWS2d(8, 8, 3)), image()


def task_decomposed() -> tuple[nn.Module, Any]:
    from mmdet.models.dense_heads.tood_head import TaskDecomposition

    class Decomposed(TaskDecomposition):
        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = super().forward(x)
            return found

    return Decomposed(4, 2, 2, conv_cfg=None, norm_cfg=None), image()


PARTS: list[Callable[[], tuple[nn.Module, Any]]] = [
    beit, deformable_v1, deformable_v2, dynamic_filters, dynamic_head,
    factorized, non_local, switchable, switchable_deformable, standardized,
    task_decomposed,
]  # fmt: skip


@pytest.mark.parametrize('make', PARTS, ids=lambda make: make.__name__)
@torch.no_grad()
def test_every_product_is_quantized(make: Any) -> None:
    torch.manual_seed(0)
    part, x = make()
    for parameter in part.parameters():
        if parameter.dim() > 1 and not parameter.any():
            parameter.normal_(std=0.1)  # offsets begin at zero
    model = Whole(part).eval().requires_grad_(False)
    expected = model(x)
    report = prepare(model, QConfig.from_dict({}), batch=x)
    for found, before in zip(model(x), expected, strict=True):
        torch.testing.assert_close(found, before, rtol=1e-4, atol=1e-4)
    calibrate(model, [x], forward=lambda m, batch: m(batch))
    products = trace_products(model, [x], forward=lambda m, b: m(b))
    assert products.total > 0
    assert (products.one, products.none) == (0, 0), products.products
    with quantizing(model):
        quantized = model(x)
    signal = sum(float(y.square().sum()) for y in expected)
    noise = sum(
        float((y - z).square().sum())
        for y, z in zip(quantized, expected, strict=True)
    )
    assert 0 < noise < signal / 100  # 20 dB
    assert report.decisions.products or make in (
        deformable_v1,
        deformable_v2,
        dynamic_head,
        standardized,
        switchable,
        switchable_deformable,
    )
