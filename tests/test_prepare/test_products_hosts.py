"""Models of the hosts: the report is true by an independent count."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')

import mmdet
import mmseg
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import DefaultScope, init_default_scope
from mmseg.structures import SegDataSample

from taskptq.apis import build_model
from taskptq.calibration import calibrate
from taskptq.core import quantizing
from taskptq.modules import quant_modules
from taskptq.prepare import QConfig, SwapReport, prepare
from taskptq.prepare.products import trace_products

HOSTS = {
    'mmdet': Path(mmdet.__file__).parent,
    'mmseg': Path(mmseg.__file__).parent,
}
SIZE = (64, 96)

pytestmark = pytest.mark.slow
QCONFIG = {
    'weight': {'num_bits': 4, 'observer': {'type': 'MinMaxObserver'}},
    'activation': {'num_bits': 8, 'observer': {'type': 'MinMaxObserver'}},
    'products': False,
}


@pytest.fixture(autouse=True)
def _host_scope() -> Iterator[None]:
    """Restore mmengine's global default scope after the test."""
    before = DefaultScope.get_current_instance()
    yield
    if before is not None:
        init_default_scope(before.scope_name)


def offline(config: Any) -> Any:
    """Leave out what would download weights."""
    if isinstance(config, Mapping):
        return {
            key: None if key in ('init_cfg', 'pretrained') else offline(item)
            for key, item in config.items()
        }
    if isinstance(config, (list, tuple)):
        return type(config)(offline(item) for item in config)
    return config


def build(host: str, name: str, **changes: Any) -> nn.Module:
    """Build a model of a host's own config, with random weights."""
    config = Config.fromfile(HOSTS[host] / '.mim/configs' / name)
    model = offline(config.model.to_dict())
    for path, value in changes.items():
        *parents, last = path.split('__')
        target = model
        for key in parents:
            target = target[key]
        target[last] = value
    torch.manual_seed(0)
    built = build_model(Config({'model': model, 'default_scope': host}))
    for module in built.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.7, 1.3)
    return built.requires_grad_(False)


def forward(model: nn.Module, images: torch.Tensor) -> Any:
    """Predict, as the host's test loop does."""
    size = tuple(images.shape[-2:])
    kind = SegDataSample if hasattr(model, 'decode_head') else DetDataSample
    meta = {
        'img_shape': size, 'ori_shape': size, 'pad_shape': size,
        'batch_input_shape': size, 'scale_factor': (1.0, 1.0),
        'padding_size': [0, 0, 0, 0], 'img_id': 0,
    }  # fmt: skip
    return model(images, [kind(metainfo=meta)], mode='predict')


def reported(
    model: nn.Module, size: tuple[int, int] = SIZE, **settings: Any
) -> tuple[SwapReport, torch.Tensor]:
    images = torch.randn(1, 3, *size)
    unreached = settings.pop('unreached', 'error')
    report = prepare(model, QConfig.from_dict(QCONFIG | settings))
    found = calibrate(model, [images], forward=forward, unreached=unreached)
    products = trace_products(model, [images], forward=forward)
    report.add_products(products, left_float=found.left_float)
    return report, images


def addmm_flops(
    _: Any, first: list[int], second: list[int], **kwargs: Any
) -> int:
    return 2 * first[0] * first[1] * second[1]


def count_otherwise(model: nn.Module, images: torch.Tensor) -> tuple[int, int]:
    """Count by hooks and by torch's counter.

    Returns:
        Multiply-accumulates of layers whose two quantizers have a range, and
        of everything.
    """
    quantized = []

    def hook(layer: Any, args: Any, out: torch.Tensor) -> None:
        if layer.input_quantizer.calibrated and (
            layer.weight_quantizer.calibrated
        ):
            moved = args[0] if isinstance(layer, nn.ConvTranspose2d) else out
            # SAConv2d multiplies each input by two weights
            weights = len(layer.weight_slots)
            quantized.append(moved.numel() * layer.weight[0].numel() * weights)

    handles = [
        layer.register_forward_hook(hook)
        for _, layer in quant_modules(model)
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear))
    ]
    # torch's table leaves out what deformable convolutions call
    counter = FlopCounterMode(
        display=False, custom_mapping={torch.ops.aten.addmm_: addmm_flops}
    )
    with torch.no_grad(), quantizing(model), counter:
        forward(model.requires_grad_(False), images)
    for handle in handles:
        handle.remove()
    return sum(quantized), counter.get_total_flops() // 2


def check_counts(
    model: nn.Module, report: SwapReport, images: torch.Tensor
) -> None:
    quantized, total = count_otherwise(model, images)
    products = report.products
    assert products is not None
    assert products.total == pytest.approx(total, rel=1e-3)
    assert products.both == quantized > 0
    assert report.table().splitlines()[0] == report.summary()
    rows = {row.name: row for row in report.rows}
    assert sum(row.macs or 0 for row in rows.values()) == products.total
    for row in rows.values():
        assert (row.status == 'quantized') <= (row.macs == row.macs_quantized)
        assert row.status == 'quantized' or row.reason


def statuses(report: SwapReport) -> dict[str, str]:
    return {row.name: row.status for row in report.rows}


def test_beit_multiplies_by_weights_itself() -> None:
    model = build_model(
        Config(
            {
                'default_scope': 'mmseg',
                'model': {
                    'type': 'EncoderDecoder',
                    'backbone': {
                        'type': 'BEiT',
                        'img_size': (64, 64),
                        'patch_size': 16,
                        'embed_dims': 48,
                        'num_layers': 2,
                        'num_heads': 2,
                        'out_indices': (1,),
                    },
                    'decode_head': {
                        'type': 'FCNHead',
                        'in_channels': 48,
                        'channels': 16,
                        'in_index': 0,
                        'num_convs': 1,
                        'concat_input': False,
                        'num_classes': 11,
                        'norm_cfg': {'type': 'BN'},
                    },
                    'train_cfg': {},
                    'test_cfg': {'mode': 'whole'},
                },
            }
        )
    ).requires_grad_(False)
    report, images = reported(model, size=(64, 64))
    check_counts(model, report, images)
    found = statuses(report)
    for i in range(2):
        name = f'backbone.layers.{i}.attn'
        assert found[f'{name}.qkv'] == found[name] == 'float'
        assert found[f'{name}.proj'] == 'quantized'
        row = next(r for r in report.rows if r.name == f'{name}.qkv')
        assert row.reason == f'{name} reads its weight without calling it'
        # 17 tokens: projections, then both products of attention
        own = sum(p.none for p in report.products.of_module(name))
        assert own == 17 * 48 * 3 * 48 + 2 * 17 * 17 * 48


def test_tood_multiplies_by_what_it_makes_of_weights() -> None:
    model = build('mmdet', 'tood/tood_r50_fpn_1x_coco.py')
    report, images = reported(model)
    check_counts(model, report, images)
    found = statuses(report)
    for part in ('cls_decomp', 'reg_decomp'):
        name = f'bbox_head.{part}'
        assert found[name] == 'float'
        assert found[f'{name}.reduction_conv.conv'] == 'float'
        assert report.products.of_module(name)[0].function == 'bmm'
        assert 'reduction_conv.conv' in (
            report.products.of_module(name)[0].reason
        )
    assert 0.85 < report.products.share < 0.95


MASK_RCNN = dict(
    backbone__depth=18,
    neck__in_channels=[64, 128, 256, 512],
    test_cfg__rpn__max_per_img=20,
    test_cfg__rcnn__max_per_img=5,
)


def test_mask_head_that_nothing_reached_is_refused() -> None:
    name = 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'
    model = build('mmdet', name, test_cfg__rcnn__score_thr=0.9, **MASK_RCNN)
    with pytest.raises(ValueError, match=r'reached roi_head\.mask_head\.'):
        reported(model)
    model = build('mmdet', name, test_cfg__rcnn__score_thr=0.9, **MASK_RCNN)
    report, images = reported(model, unreached='float')
    check_counts(model, report, images)
    masks = {s for n, s in statuses(report).items() if 'mask_head' in n}
    assert masks == {'float'}
    assert report.count('quantized') > 30


def test_mask_head_that_was_reached() -> None:
    model = build(
        'mmdet',
        'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
        test_cfg__rcnn__score_thr=0.0,
        **MASK_RCNN,
    )
    report, images = reported(model)
    check_counts(model, report, images)
    assert set(statuses(report).values()) == {'quantized'}
    assert report.products.share == 1


def test_rtmdet_is_quantized_whole() -> None:
    model = build('mmdet', 'rtmdet/rtmdet_s_8xb32-300e_coco.py')
    report, images = reported(model)
    check_counts(model, report, images)
    left = {row.type for row in report.rows if row.status != 'quantized'}
    assert left == {'ChannelAttention'}
    assert report.products.share == 1


def test_filters_of_dmnet_and_its_auxiliary_head() -> None:
    """A segmentor whose config asks for SyncBN, and products without rows."""
    model = build(
        'mmseg',
        'dmnet/dmnet_r50-d8_4xb2-40k_cityscapes-512x1024.py',
        backbone__depth=18,
        decode_head__in_channels=512,
        decode_head__channels=64,
        auxiliary_head__in_channels=256,
    )
    report, images = reported(model)
    check_counts(model, report, images)
    found = statuses(report)
    for name, status in found.items():
        head = name.startswith('auxiliary_head.')
        filters = 'dcm_modules' in name and name.count('.') == 2
        assert (status == 'float') == (head or filters), name
    assert (
        sum(
            'dcm_modules' in name
            for name, status in found.items()
            if status == 'float'
        )
        == 4
    )
    assert set(report.products.left_float.values()) == {
        'only training runs it'
    }


def test_detectors_counts() -> None:
    model = build(
        'mmdet',
        'detectors/detectors_cascade-rcnn_r50_1x_coco.py',
        test_cfg__rpn__max_per_img=20,
    )
    model.init_weights()
    # random features are large, and would shift every box out of the image
    model.rpn_head.rpn_reg.weight.data.zero_()
    # reflections pad by 2, at a stride of 32
    report, images = reported(model, size=(96, 128))
    check_counts(model, report, images)
    assert report.count('quantized') > 100


def test_deformable_convolutions_are_quantized_products() -> None:
    ops = pytest.importorskip('mmcv.ops')
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 1)
            self.old = ops.DeformConv2dPack(8, 8, 3, padding=1)
            self.new = ops.ModulatedDeformConv2dPack(8, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.new(self.old(self.stem(x)))

    model = Net().eval()
    images = torch.randn(2, 3, 10, 12)
    report = prepare(model, QConfig.from_dict(QCONFIG))
    found = calibrate(model, [images], forward=lambda m, x: m(x))
    products = trace_products(model, [images], forward=lambda m, x: m(x))
    report.add_products(products, left_float=found.left_float)
    rows = {row.name: row for row in report.rows}
    places = 2 * 10 * 12
    assert rows['old'].macs == places * 8 * 8 * 9
    assert rows['new'].macs == places * 4 * 8 * 9
    assert {row.status for row in rows.values()} == {'quantized'}
    assert products.both == products.total
