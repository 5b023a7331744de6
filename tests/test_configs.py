"""Every config parses; the zoo configs quantize their models whole."""

from __future__ import annotations

import copy
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

import mmdet
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.registry import HOOKS, DefaultScope, init_default_scope
from mmseg.structures import SegDataSample

from taskptq.apis import build_model
from taskptq.bench.peers import is_peer
from taskptq.bench.table import read_table
from taskptq.calibration import calibrate
from taskptq.engine.adapters import name_tensors
from taskptq.engine.builder import build_loss, build_qconfig
from taskptq.engine.ptq_hook import PTQHook
from taskptq.modules import quant_modules
from taskptq.prepare import SwapReport, prepare, split_blocks
from taskptq.recipes import KEYS, method_names, resolve
from taskptq.reconstruction import freeze

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
ALL = sorted(str(p.relative_to(CONFIGS)) for p in CONFIGS.rglob('*.py'))
ALL_CONFIGS = sorted(
    p
    for folder in ('configs', 'projects/*/configs')
    for p in CONFIGS.parent.glob(f'{folder}/**/*.py')
)
METAFILES = sorted(CONFIGS.glob('*/metafile.yml'))
TABLES = sorted(CONFIGS.glob('*/*.table.yml'))
HOST_CONFIGS = Path(mmdet.__file__).parent / '.mim' / 'configs'
# Config -> type of its blocks (one that must be among them) and the layers
# that stay float, by class.
ZOO = {
    'faster_rcnn/faster-rcnn_r50_fpn_qdrop-w4a8_calib256_coco.py': (
        'Bottleneck',
        set(),
    ),
    'retinanet/retinanet_r50_fpn_qdrop-w4a8_calib256_coco.py': (
        'Bottleneck',
        set(),
    ),
    'rtmdet/rtmdet_s_qdrop-w4a8_calib256_coco.py': (
        'CSPLayer',
        {'ChannelAttention'},
    ),
    'detr/detr_r50_qdrop-w4a8_calib256_coco.py': (
        'DetrTransformerDecoderLayer',
        {'Embedding'},
    ),
    'mask_rcnn/mask-rcnn_swin-t_fpn_qdrop-w4a8_calib256_coco.py': (
        'SwinBlock',
        set(),
    ),
    'segformer/segformer_mit-b0_qdrop-w4a8_calib256_ade20k.py': (
        'TransformerEncoderLayer',
        set(),
    ),
    'segformer/segformer_mit-b0_qdrop-w4a8_calib256_cityscapes.py': (
        'TransformerEncoderLayer',
        set(),
    ),
    'upernet/upernet_swin-t_qdrop-w4a8_calib256_ade20k.py': (
        'SwinBlock',
        set(),
    ),
    'upernet/upernet_swin-t_qdrop-w4a8_calib256_cityscapes.py': (
        'SwinBlock',
        set(),
    ),
}
# The others have the same models, with other numbers of classes.
WHOLE = [name for name in ZOO if not name.endswith('cityscapes.py')]
# Config -> config of the host whose model it quantizes, and the classes of
# the layers that stay float. Too large to run here.
DETR_ZOO = {
    'detr/detr_r50_drd-w4a4-8_calib256_coco.py': (
        'detr/detr_r50_8xb2-150e_coco.py',
        {'Embedding'},
    ),
    'conditional_detr/conditional-detr_r50_drd-w4a4-8_calib256_coco.py': (
        'conditional_detr/conditional-detr_r50_8xb2-50e_coco.py',
        {'Embedding'},
    ),
    'deformable_detr/deformable-detr_r50_drd-w4a4-8_calib256_coco.py': (
        'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
        {'Embedding', 'DeformableDETR'},
    ),
    'dino/dino-4scale_r50_drd-w4a4-8_calib256_coco.py': (
        'dino/dino-4scale_r50_8xb2-12e_coco.py',
        {'Embedding', 'DINO'},
    ),
}
# Bits of a DETR -> of weights, of activations; attention has 8.
DETR_BITS = {
    'w8a8': (8, 8),
    'w6a6-8': (6, 6),
    'w4a4-8': (4, 4),
    'w3a3-8': (3, 3),
    'w2a4-8': (2, 4),
    'w2a2-8': (2, 2),
}
# Those of edge layers, and fewer, different ones of weights and
# activations. That names give these bits is another test.
PREPARED_BITS = ('w8a8', 'w2a4-8')
DETR_METHODS = (
    'minmax',
    'mse',
    'adaround',
    'qdrop',
    'da',
    'fqm',
    'drd',
    'drd-centering',
    'drd-fixed',
    'qdrop-decoder',
    'qdrop-decoder-fixed',
    'mse-centering',
    'mse-centering-heads',
    'qdrop-centering',
)
NAME = re.compile(
    r'[a-z0-9-]+(_[a-z0-9-]+)*_[a-z0-9-]+-w(?P<weight>\d)'
    r'a(?P<activation>\d)(-(?P<attention>\d))?'
    r'_calib(?P<images>\d+)_[a-z0-9]+\.py'
)
ATTENTION = {
    'WindowMSA',
    'ConditionalAttention',
    'MultiScaleDeformableAttention',
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
    assert not {*KEYS, 'calibration'} & set(cfg)
    for hook in cfg.get('custom_hooks') or []:
        if hook['type'].endswith(('PTQHook', 'QATHook')):
            assert HOOKS.build(hook).recipe


@pytest.mark.parametrize('path', ALL_CONFIGS, ids=lambda p: p.stem)
def test_a_config_names_its_recipe(path: Path) -> None:
    text = path.read_text(encoding='utf-8')
    assert not re.search(r'num_bits|qconfig', text)


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


@pytest.mark.parametrize('name', [*ZOO, *DETR_ZOO])
def test_zoo_name_says_what_it_does(name: str, host_scope: None) -> None:
    cfg = load(name)
    match = NAME.fullmatch(Path(name).name)
    assert match is not None
    hook = HOOKS.build(cfg.custom_hooks[-1])
    assert isinstance(hook, PTQHook)
    assert hook.recipe is not None
    assert hook.recipe.reconstruction is not None
    points = hook.recipe.qconfig.points
    assert points['weight']['num_bits'] == int(match['weight'])
    assert points['activation']['num_bits'] == int(match['activation'])
    if match['attention'] is not None:
        for point in ('attention', 'softmax'):
            assert points[point]['num_bits'] == int(match['attention'])
    assert hook.recipe.reconstruction['drop_prob'] == 0.5
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
def head_outputs(model: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
    """Raw outputs, without steps that select (NMS, top-k)."""
    if not hasattr(model, 'roi_head'):
        sample = batch['sample_type'](metainfo=batch['metas'])
        outputs = model(batch['inputs'], [sample], mode='tensor')
        return dict(name_tensors(outputs))
    head = model.roi_head
    features = model.extract_feat(batch['inputs'])
    rois = torch.tensor([[0, 4.0, 4.0, 40.0, 44.0], [0, 0.0, 8.0, 90.0, 60.0]])
    outputs = {'rpn': model.rpn_head(features)}
    levels = features[: head.bbox_roi_extractor.num_inputs]
    outputs['bbox'] = head.bbox_head(head.bbox_roi_extractor(levels, rois))
    if head.with_mask:
        outputs['mask'] = head.mask_head(head.mask_roi_extractor(levels, rois))
    return dict(name_tensors(outputs))


def quantizable(model: nn.Module) -> dict[str, str]:
    """Every conv, linear and attention, counted by torch's own classes."""
    kinds = (
        nn.modules.conv._ConvNd,
        nn.Linear,
        nn.Bilinear,
        nn.MultiheadAttention,
    )
    return {
        name: type(module).__name__
        for name, module in model.named_modules()
        if isinstance(module, kinds) or type(module).__name__ in ATTENTION
    }


def check_coverage(
    report: SwapReport,
    expected: dict[str, str],
    float_kinds: set[str],
    *,
    weight_bits: int = 4,
) -> None:
    rows = {row.name: row for row in report.rows}
    assert len(rows) == len(report.rows)
    assert set(expected) <= set(rows)
    for name, kind in expected.items():
        assert rows[name].type == kind
        assert rows[name].status == 'quantized', rows[name]
    left = [row for row in report.rows if row.status == 'float']
    assert {row.type for row in left} == float_kinds
    assert all(row.reason for row in left)
    weights = {
        row.weight_bits for row in report.rows if row.reason == 'edge layer'
    }
    assert weights == {8}
    inner = {
        row.weight_bits
        for row in report.rows
        if row.status == 'quantized' and not row.reason
    }
    assert inner <= {weight_bits, None}


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
@pytest.mark.parametrize('name', WHOLE)
def test_zoo_model_is_quantized_whole(name: str, host_scope: None) -> None:
    block, float_kinds = ZOO[name]
    cfg = load(name)
    model = random_model(cfg)
    batch = random_batch(cfg)
    expected = quantizable(model)
    before = head_outputs(model, batch)

    settings = resolve(cfg.custom_hooks[-1].recipe)['qconfig']
    for point in ('weight', 'activation'):
        settings[point]['observer'] = {'type': 'MinMaxObserver'}
    report = prepare(model, build_qconfig(settings))
    check_coverage(report, expected, float_kinds)
    check_blocks(model, block)
    check_equal(head_outputs(model, batch), before)

    result = calibrate(model, [batch], forward=predict)
    # Segmentors don't run their auxiliary heads when they predict.
    assert all(n.startswith('auxiliary_head.') for n in result.left_float)
    missing = [
        n for n in result.unobserved if not n.startswith('auxiliary_head.')
    ]
    # A query, key and value that are one tensor share the first quantizer.
    assert all(
        n.endswith(('key_input_quantizer', 'value_input_quantizer'))
        for n in missing
    ), missing
    frozen = freeze(model)
    assert frozen.num_weights >= len(
        [
            name
            for name, kind in expected.items()
            if kind not in ATTENTION and name not in result.left_float
        ]
    )
    assert frozen.most_levels[4] <= 16
    after = head_outputs(model, batch)
    assert all(torch.isfinite(value).all() for value in after.values())
    assert any(not torch.equal(after[n], before[n]) for n in before)
    sample = predict(model, batch)[0]
    if cfg.default_scope == 'mmseg':
        assert sample.pred_sem_seg.shape == (HEIGHT, WIDTH)
    else:
        assert sample.pred_instances.bboxes.shape[1] == 4


@pytest.mark.parametrize('bits', DETR_BITS)
@pytest.mark.parametrize('method', DETR_METHODS)
def test_detr_recipe_has_its_bits(bits: str, method: str) -> None:
    recipe = resolve(f'{bits}_{method}')
    weight, activation = DETR_BITS[bits]
    points = build_qconfig(recipe['qconfig']).points
    assert points['weight']['num_bits'] == weight
    assert points['activation']['num_bits'] == activation
    for point in ('attention', 'query', 'key', 'value', 'softmax'):
        assert points[point]['num_bits'] == 8
    # Also the baselines' weights: at 2 bits it decides.
    assert weight > 3 or not points['weight']['symmetric']
    loss = (recipe['reconstruction'] or {}).get('loss')
    if loss is not None:
        assert type(build_loss(loss)).__name__ == loss['type']
    assert (loss is not None) is method.startswith(
        ('fqm', 'drd', 'qdrop-decoder')
    )
    aligned = [
        override['query']['type']
        for override in recipe['qconfig'].get('overrides', [])
    ]
    expected = method == 'da' or method.startswith('drd')
    assert aligned == ['AlignedQuantizer'] * expected


@pytest.mark.parametrize('name', DETR_ZOO)
def test_detr_zoo_leaves_the_model_alone(name: str) -> None:
    host = Config.fromfile(HOST_CONFIGS / DETR_ZOO[name][0])
    model = load(name).model.to_dict()
    # mmengine notes where an inherited model comes from.
    assert model.pop('_scope_', 'mmdet') == 'mmdet'
    assert model == host.model.to_dict()


@pytest.mark.slow
@pytest.mark.parametrize('name', DETR_ZOO)
def test_detr_zoo_is_prepared_at_its_bits(name: str, host_scope: None) -> None:
    cfg = load(name)
    cfg.model = offline(cfg.model.to_dict())
    official = build_model(copy.deepcopy(cfg)).state_dict()
    for bits in PREPARED_BITS:
        weight, activation = DETR_BITS[bits]
        # Deformable DETR writes into its config.
        model = build_model(copy.deepcopy(cfg))
        model.load_state_dict(official, strict=True)
        expected = quantizable(model)
        qconfig = resolve(f'{bits}_drd')['qconfig']
        report = prepare(model, build_qconfig(qconfig))
        check_coverage(report, expected, DETR_ZOO[name][1], weight_bits=weight)
        check_detr(report, activation)
        decoder = {
            name: type(module).__name__
            for name, module in model.named_modules()
            if name.endswith('query_quantizer') and name.startswith('decoder.')
        }
        assert set(decoder.values()) == {'AlignedQuantizer'}
        # Deformable cross-attention has no queries that meet keys.
        per_layer = 1 if 'deformable' in name or 'dino' in name else 2
        assert len(decoder) == 6 * per_layer


def check_detr(report: SwapReport, activation_bits: int) -> None:
    """Attention and its positions have 8 bits; inner layers have theirs."""
    rows = [row for row in report.rows if row.status == 'quantized']
    attentions = [row for row in rows if row.softmax_bits is not None]
    assert len(attentions) == 6 + 2 * 6
    for row in attentions:
        assert {row.attention_bits, row.softmax_bits} == {8}
    positions = [
        row
        for row in rows
        if row.name.endswith(('qpos_proj', 'kpos_proj', 'qpos_sine_proj'))
    ]
    assert {row.activation_bits for row in positions} <= {8, None}
    inner = {
        row.activation_bits
        for row in rows
        if not row.reason and row not in positions
    }
    assert inner <= {activation_bits, None}


@pytest.mark.parametrize('path', TABLES, ids=lambda p: p.stem)
def test_rows_of_tables_have_their_recipes(path: Path) -> None:
    table = read_table(path)
    assert (CONFIGS.parent / table.config).is_file()
    rows = table.rows()
    assert rows
    for row in rows:
        if is_peer(row.method):
            continue
        bits, method = row.bits, row.recipe.removeprefix(f'{row.bits}_')
        assert row.recipe == f'{bits}_{method}'
        assert method in method_names()
