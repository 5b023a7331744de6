"""Models of the hosts: folded and swapped as far as the batch confirms.

Random weights and small images: the layers are what is looked at, each where
it acts, and the features as a whole, which no selection interrupts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip('mmengine')
pytest.importorskip('mmdet')
pytest.importorskip('mmseg')

import mmdet
import mmseg
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmseg.structures import SegDataSample

from taskptq.apis import build_model
from taskptq.core import float_only
from taskptq.modules import quant_modules
from taskptq.prepare import QConfig, SwapReport, prepare
from taskptq.prepare.difference import difference
from taskptq.prepare.fuse import is_norm

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
HOSTS = {
    'mmdet': Path(mmdet.__file__).parent / '.mim' / 'configs',
    'mmseg': Path(mmseg.__file__).parent / '.mim' / 'configs',
}
W4 = QConfig.from_dict(
    {'weight': {'num_bits': 4}, 'activation': {'num_bits': 4}}
)
SIZE = (96, 128)

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def host_scope() -> Any:
    """Restore mmengine's global default scope after the test."""
    before = DefaultScope.get_current_instance()
    yield
    if before is not None:
        DefaultScope.get_instance('restored', scope_name=before.scope_name)


def read(name: str) -> Config:
    host, separator, path = name.partition('::')
    config = Config.fromfile(
        HOSTS[host] / path if separator else CONFIGS / name
    )
    config.model = offline(config.model.to_dict())
    return config


def offline(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: offline(item)
            for key, item in value.items()
            if not (
                key == 'init_cfg'
                and isinstance(item, dict)
                and item.get('type') == 'Pretrained'
            )
        }
    if isinstance(value, list | tuple):
        return type(value)(offline(item) for item in value)
    return value


def randomised(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for module in model.modules():
        if is_norm(module):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.7, 1.3)
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, std=0.1)
        gamma = getattr(module, 'weight_gamma', None)
        if gamma is not None:
            # As loading plain weights into ConvAWS leaves it.
            gamma.uniform_(0.01, 0.03)
    return model.eval()


def predict(model: nn.Module, images: torch.Tensor) -> Any:
    meta = {
        'img_shape': SIZE,
        'ori_shape': SIZE,
        'pad_shape': SIZE,
        'batch_input_shape': SIZE,
        'scale_factor': (1.0, 1.0),
        'padding_size': [0, 0, 0, 0],
        'img_id': 0,
    }
    kind = SegDataSample if hasattr(model, 'decode_head') else DetDataSample
    return model(images, [kind(metainfo=meta)], mode='predict')


@torch.no_grad()
def check(model: nn.Module) -> SwapReport:
    """Prepare on a batch; features must be what they were."""
    images = torch.randn(1, 3, *SIZE)
    before = model.extract_feat(images)
    assert all(x.isfinite().all() for x in before)
    report = prepare(model, W4, batch=images, forward=predict)
    with float_only(model):
        assert difference(model.extract_feat(images), before) <= 1e-4
    return report


@pytest.mark.parametrize('reverted', [True, False])
def test_segmentor_with_sync_norms_has_one_structure(reverted: bool) -> None:
    name = 'segformer/segformer_mit-tiny_camvid.py'
    expected = check(randomised(build_model(read(name))))
    assert len(expected.folded) == 5
    config = read(name)
    config.model['decode_head']['norm_cfg'] = {'type': 'SyncBN'}
    if reverted:
        model = build_model(config)
    else:
        # As a Runner under a launcher leaves it.
        with DefaultScope.overwrite_default_scope('mmseg'):
            model = MODELS.build(config.model)
    plain = randomised(build_model(read(name)))
    report = check(randomised(model))
    assert report.decisions == expected.decisions
    assert report.rows == expected.rows
    prepare(plain, W4, decisions=report.decisions)
    assert plain.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize('kind', ['ConvAWS', 'ConvWS'])
def test_backbone_of_standardized_convolutions(kind: str) -> None:
    config = read('retinanet/retinanet_r18-half_fpn_bccd.py')
    config.model['backbone']['conv_cfg'] = {'type': kind}
    model = build_model(config)
    report = check(randomised(model))
    # All but those of the stem and the shortcuts are built by conv_cfg.
    assert len(report.folded) == 20
    assert not report.decisions.kept_norms
    assert len(report.decisions.baked) == 20
    assert report.count('float') == 0
    assert not any(kind in type(m).__name__ for m in model.modules())


ZOO = {
    # Norms folded, norms kept, kinds of layers left float. In RTMDet 12 norms
    # follow convolutions that three levels share.
    'mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py': (
        70,
        12,
        {'ChannelAttention'},
    ),
    'mmdet::detectors/detectors_cascade-rcnn_r50_1x_coco.py': (
        80,
        26,
        set(),
    ),
    'mmdet::tood/tood_r50_fpn_1x_coco.py': (53, 0, {'Conv2d'}),
    'mmseg::pspnet/pspnet_r50-d8_4xb2-40k_cityscapes-512x1024.py': (
        61,
        0,
        set(),
    ),
}


@pytest.mark.parametrize(
    'name',
    [
        # DetectoRS is prepared on a batch in test_products_hosts as well.
        pytest.param(name, marks=pytest.mark.long)
        if 'detectors_' in name
        else name
        for name in ZOO
    ],
)
def test_zoo(name: str) -> None:
    folded, kept, float_kinds = ZOO[name]
    model = randomised(build_model(read(name)))
    report = check(model)
    assert len(report.folded) == folded
    assert len(report.decisions.kept_norms) == kept
    assert {r.type for r in report.rows if r.status == 'float'} == float_kinds
    assert len(quant_modules(model)) == report.count('quantized')
    read_directly = list(report.decisions.left_float)
    assert all('reduction_conv' in n for n in read_directly)
    assert bool(read_directly) == ('tood' in name)
