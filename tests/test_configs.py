"""Every config parses; the zoo configs quantize their models whole."""
from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

pytest.importorskip('mmengine')
pytest.importorskip('mmdet')
pytest.importorskip('mmseg')

from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import HOOKS, DefaultScope, init_default_scope
from mmseg.structures import SegDataSample

from taskptq.apis import build_model
from taskptq.calibration import calibrate, freeze
from taskptq.calibration.reconstruct import ReconstructionConfig
from taskptq.engine.adapters import flatten
from taskptq.engine.builder import build_qconfig, to_plain
from taskptq.engine.calibration_data import CalibrationConfig
from taskptq.engine.ptq_hook import PTQHook
from taskptq.modules import quant_modules
from taskptq.prepare import SwapReport, prepare, split_blocks

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
ALL = sorted(str(p.relative_to(CONFIGS)) for p in CONFIGS.rglob('*.py'))
METAFILES = sorted(CONFIGS.glob('*/metafile.yml'))
# Config -> type of its blocks (one that must be among them) and the layers
# that stay float, by class.
ZOO = {
    'faster_rcnn/faster-rcnn_r50_fpn_qdrop-w4a8_calib256_coco.py':
    ('Bottleneck', set()),
    'retinanet/retinanet_r50_fpn_qdrop-w4a8_calib256_coco.py':
    ('Bottleneck', set()),
    'rtmdet/rtmdet_s_qdrop-w4a8_calib256_coco.py':
    ('CSPLayer', {'ChannelAttention'}),
    'detr/detr_r50_qdrop-w4a8_calib256_coco.py':
    ('DetrTransformerDecoderLayer', {'Embedding'}),
    'mask_rcnn/mask-rcnn_swin-t_fpn_qdrop-w4a8_calib256_coco.py':
    ('SwinBlock', set()),
    'segformer/segformer_mit-b0_qdrop-w4a8_calib256_ade20k.py':
    ('TransformerEncoderLayer', set()),
    'segformer/segformer_mit-b0_qdrop-w4a8_calib256_cityscapes.py':
    ('TransformerEncoderLayer', set()),
    'upernet/upernet_swin-t_qdrop-w4a8_calib256_ade20k.py':
    ('SwinBlock', set()),
    'upernet/upernet_swin-t_qdrop-w4a8_calib256_cityscapes.py':
    ('SwinBlock', set()),
}
NAME = re.compile(r'[a-z0-9-]+(_[a-z0-9-]+)*_[a-z0-9-]+-w(?P<weight>\d)'
                  r'a(?P<activation>\d)_calib(?P<images>\d+)_[a-z0-9]+\.py')
ATTENTION = {
    'WindowMSA', 'ConditionalAttention', 'MultiScaleDeformableAttention'
}
HEIGHT, WIDTH = 64, 96


@pytest.fixture
def host_scope() -> Iterator[None]:
    """Restore mmengine's global default scope after the test."""
    before = DefaultScope.get_current_instance()
    yield
    if before is not None:
        init_default_scope(before.scope_name)


def load(name: str) -> Config:
    return Config.fromfile(CONFIGS / name)


@pytest.mark.parametrize('name', ALL)
def test_config_is_understood(name: str) -> None:
    cfg = load(name)
    if 'qconfig' in cfg:
        build_qconfig(cfg.qconfig)
    if cfg.get('reconstruction') is not None:
        settings = to_plain(cfg.reconstruction)
        settings.pop('loss', None)
        ReconstructionConfig.from_dict(settings)
    if 'calibration' in cfg:
        CalibrationConfig.from_dict(cfg.calibration.to_dict())


def test_fragments_own_disjoint_keys() -> None:
    keys = {
        folder: {
            key
            for path in (CONFIGS / '_base_' / folder).glob('*.py')
            for key in Config.fromfile(path)
        }
        for folder in ('quant', 'calibration')
    }
    assert keys == {
        'quant': {'qconfig', 'reconstruction'},
        'calibration': {'calibration'}
    }


@pytest.mark.parametrize('path', METAFILES, ids=lambda p: p.parent.name)
def test_metafile_names_files_that_exist(path: Path) -> None:
    content = yaml.safe_load(path.read_text(encoding='utf-8'))
    root = CONFIGS.parent
    collections = {item['Name'] for item in content['Collections']}
    for item in content['Collections']:
        assert (root / item['README']).is_file()
    for model in content['Models']:
        assert model['In Collection'] in collections
        assert (root / model['Config']).parent == path.parent
        assert (root / model['Config']).is_file()


@pytest.mark.parametrize('name', ZOO)
def test_zoo_name_says_what_it_does(name: str, host_scope: None) -> None:
    cfg = load(name)
    match = NAME.fullmatch(Path(name).name)
    assert match is not None
    assert cfg.qconfig.weight.num_bits == int(match['weight'])
    assert cfg.qconfig.activation.num_bits == int(match['activation'])
    assert cfg.calibration.num_images == int(match['images'])
    assert cfg.reconstruction.drop_prob == 0.5
    hook = HOOKS.build(cfg.custom_hooks[-1])
    assert isinstance(hook, PTQHook)
    assert hook.calibration.num_images == int(match['images'])


def test_rtmdet_keeps_its_own_hooks() -> None:
    cfg = load('rtmdet/rtmdet_s_qdrop-w4a8_calib256_coco.py')
    kinds = [hook['type'] for hook in cfg.custom_hooks]
    assert kinds == ['EMAHook', 'PipelineSwitchHook', 'taskptq.PTQHook']


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


def random_model(cfg: Config) -> nn.Module:
    """Build a config's model; its norms get statistics of their own."""
    cfg.model = offline(cfg.model.to_dict())
    rcnn = (cfg.model.get('test_cfg') or {}).get('rcnn')
    if rcnn is not None:
        # Every box counts, or a random model would hand none to the masks.
        rcnn.update(score_thr=0.0, max_per_img=5)
    model = build_model(cfg)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.7, 1.3)
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, std=0.1)
    return model


def random_batch(cfg: Config) -> dict[str, Any]:
    kind = DetDataSample if cfg.default_scope == 'mmdet' else SegDataSample
    size = (HEIGHT, WIDTH)
    meta = {
        'img_shape': size,
        'ori_shape': size,
        'pad_shape': size,
        'batch_input_shape': size,
        'scale_factor': (1.0, 1.0),
        'padding_size': [0, 0, 0, 0],
        'img_id': 0,
    }
    return {
        'inputs': torch.randn(1, 3, HEIGHT, WIDTH),
        'metas': meta,
        'sample_type': kind,
    }


def predict(model: nn.Module, batch: dict[str, Any]) -> Any:
    sample = batch['sample_type'](metainfo=batch['metas'])
    return model(batch['inputs'], [sample], mode='predict')


@torch.no_grad()
def head_outputs(model: nn.Module,
                 batch: dict[str, Any]) -> dict[str, Tensor]:
    """Raw outputs, without steps that select (NMS, top-k)."""
    if not hasattr(model, 'roi_head'):
        sample = batch['sample_type'](metainfo=batch['metas'])
        outputs = model(batch['inputs'], [sample], mode='tensor')
        return dict(flatten(outputs))
    head = model.roi_head
    features = model.extract_feat(batch['inputs'])
    rois = torch.tensor([[0, 4.0, 4.0, 40.0, 44.0], [0, 0.0, 8.0, 90.0, 60.0]])
    outputs = {'rpn': model.rpn_head(features)}
    levels = features[:head.bbox_roi_extractor.num_inputs]
    outputs['bbox'] = head.bbox_head(head.bbox_roi_extractor(levels, rois))
    if head.with_mask:
        outputs['mask'] = head.mask_head(
            head.mask_roi_extractor(levels, rois))
    return dict(flatten(outputs))


def quantizable(model: nn.Module) -> dict[str, str]:
    """Every conv, linear and attention, counted by torch's own classes."""
    kinds = (nn.modules.conv._ConvNd, nn.Linear, nn.Bilinear,
             nn.MultiheadAttention)
    return {
        name: type(module).__name__
        for name, module in model.named_modules()
        if isinstance(module, kinds) or type(module).__name__ in ATTENTION
    }


def check_coverage(report: SwapReport, expected: dict[str, str],
                   float_kinds: set[str]) -> None:
    rows = {row.name: row for row in report.rows}
    assert len(rows) == len(report.rows)
    assert set(expected) <= set(rows)
    for name, kind in expected.items():
        assert rows[name].type == kind
        assert rows[name].status == 'quantized', rows[name]
    left = [row for row in report.rows if row.status == 'float']
    assert {row.type for row in left} == float_kinds
    assert all(row.reason for row in left)
    weights = {row.weight_bits for row in report.rows
               if row.reason == 'edge layer'}
    assert weights == {8}
    inner = {row.weight_bits for row in report.rows
             if row.status == 'quantized' and not row.reason}
    assert inner <= {4, None}


def check_equal(now: dict[str, Tensor], before: dict[str, Tensor]) -> None:
    assert set(now) == set(before)
    for name, value in before.items():
        error = (now[name] - value).abs().max()
        assert error <= 1e-5 * value.abs().max(), (name, error)


def check_blocks(model: nn.Module, kind: str) -> None:
    units = split_blocks(model)
    assert kind in {type(unit.module).__name__ for unit in units}
    layers = [name for unit in units for name, _ in unit.layers()]
    assert sorted(layers) == sorted(name for name, _ in quant_modules(model))
    alone = [unit.name for unit in units if len(unit.layers()) == 1]
    assert len(alone) <= len(units) / 2, alone


@pytest.mark.slow
@pytest.mark.parametrize('name', ZOO)
def test_zoo_model_is_quantized_whole(name: str, host_scope: None) -> None:
    block, float_kinds = ZOO[name]
    cfg = load(name)
    model = random_model(cfg)
    batch = random_batch(cfg)
    expected = quantizable(model)
    before = head_outputs(model, batch)

    settings = to_plain(cfg.qconfig)
    for point in ('weight', 'activation'):
        settings[point]['observer'] = {'type': 'MinMaxObserver'}
    report = prepare(model, build_qconfig(settings))
    check_coverage(report, expected, float_kinds)
    check_blocks(model, block)
    check_equal(head_outputs(model, batch), before)

    result = calibrate(model, [batch], forward=predict)
    # Segmentors don't run their auxiliary heads when they predict.
    missing = [n for n in result.unobserved
               if not n.startswith('auxiliary_head.')]
    # A query, key and value that are one tensor share the first quantizer.
    assert all(n.endswith(('key_input_quantizer', 'value_input_quantizer'))
               for n in missing), missing
    frozen = freeze(model)
    assert frozen.num_weights >= len(
        [kind for kind in expected.values() if kind not in ATTENTION])
    assert frozen.most_levels[4] <= 16
    after = head_outputs(model, batch)
    assert all(torch.isfinite(value).all() for value in after.values())
    assert any(not torch.equal(after[n], before[n]) for n in before)
    sample = predict(model, batch)[0]
    if cfg.default_scope == 'mmseg':
        assert sample.pred_sem_seg.shape == (HEIGHT, WIDTH)
    else:
        assert sample.pred_instances.bboxes.shape[1] == 4
