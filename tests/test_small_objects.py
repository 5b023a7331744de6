"""The configs of small objects: they build, train, and quantize."""

import copy
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip('mmengine')
pytest.importorskip('mmdet')

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from taskptq.engine.builder import build_qconfig
from taskptq.models.grid.head import GridLoss
from taskptq.prepare import prepare
from taskptq.recipes import resolve

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / 'configs' / 'small_objects'
NUCLEI = sorted(path.stem for path in FOLDER.glob('*_nuclei.py'))
COCO = sorted(path.stem for path in FOLDER.glob('*_coco.py'))
OTHER = sorted(
    path.stem
    for path in FOLDER.glob('*.py')
    if path.stem.endswith(('_visdrone', '_aitod'))
)
TRAINING = sorted(FOLDER.glob('*.train.yml'))
CLASSES = {'visdrone': 10, 'aitod': 8}


@pytest.fixture(scope='module')
def small():
    """The helper module of the small detectors."""
    spec = importlib.util.spec_from_file_location(
        'grid_configs', ROOT / 'tests' / 'grid_configs.py'
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules['grid_configs'] = module
    spec.loader.exec_module(module)
    return module


def grid_losses(model):
    return [m for m in model.modules() if isinstance(m, GridLoss)]


@pytest.mark.parametrize('name', NUCLEI)
def test_variant_trains_two_steps_and_predicts(small, name):
    model = small.build(name)
    losses = grid_losses(model)
    assert bool(losses) == ('plain' not in name)
    kinds = {'um': 'min', 'refine': 'min', 'match': 'match'}
    wanted = kinds.get(name.split('_')[2].removeprefix('grid-'))
    assert {loss.uncertainty for loss in losses} <= {wanted}
    batch = small.noise_batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    model.train()
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002 - what mmdet's samplers use
        data = model.data_preprocessor(copy.deepcopy(batch), True)
        loss, parts = model.parse_losses(model(**data, mode='loss'))
        assert bool(torch.isfinite(loss)), parts
        assert ('refine' in name) == any('refine' in key for key in parts)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        found = model.test_step(copy.deepcopy(batch))
    assert all(
        bool(one.pred_instances.bboxes.isfinite().all()) for one in found
    )


def test_variants_share_data_and_schedule():
    keys = (
        'train_dataloader',
        'val_dataloader',
        'optim_wrapper',
        'param_scheduler',
        'custom_hooks',
        'train_cfg',
        'val_evaluator',
    )
    for detector, number in (('faster-rcnn', 8), ('fcos', 7)):
        configs = {
            name: Config.fromfile(FOLDER / f'{name}.py')
            for name in NUCLEI
            if name.startswith(detector)
        }
        long = {
            name: configs.pop(name)
            for name in list(configs)
            if '-long' in name
        }
        assert (len(configs), len(long)) == (number, 2)
        first = next(iter(configs.values()))
        for config in configs.values():
            for key in keys:
                assert config[key] == first[key], key
        # Only the length differs, by the same factor.
        for name, config in long.items():
            assert config.model == configs[name.replace('-long', '')].model
            assert (
                config.train_cfg.max_epochs == 3 * first.train_cfg.max_epochs
            )
            for key in set(keys) - {'train_cfg'}:
                assert config[key] == first[key], key


@pytest.mark.parametrize('path', TRAINING, ids=lambda p: p.stem)
def test_training_table_names_every_variant(path):
    content = yaml.safe_load(path.read_text())
    named = {Path(one['config']).stem for one in content['variants']}
    detector = path.name.partition('_')[0]
    assert named == {name for name in NUCLEI if name.startswith(detector)}
    names = [one['name'] for one in content['variants']]
    for target in content['targets']:
        assert {target['baseline'], *target['variants']} <= set(names)


@pytest.mark.parametrize(
    'path', sorted(FOLDER.glob('*.table.yml')), ids=lambda p: p.stem
)
def test_table_names_recipes_and_a_published_checkpoint(path):
    content = yaml.safe_load(path.read_text())
    assert (ROOT / content['config']).is_file()
    assert Path(content['checkpoint']).stem == Path(content['config']).stem
    for group in content['groups']:
        for method in group['methods']:
            assert (group.get('scope') == 'head') == (method == 'head-mse')
            for bits in group['bits']:
                assert resolve(f'{bits}_{method.replace("+", "-")}')


@pytest.mark.parametrize(
    ('name', 'layers'),
    [
        (
            'faster-rcnn_r18-half_grid_nuclei',
            {'rpn_head.rpn_reg', 'roi_head.bbox_head.fc_reg'},
        ),
        ('fcos_r18-half_plain_nuclei', {'bbox_head.conv_reg'}),
    ],
)
@pytest.mark.parametrize('bits', ['w4a4', 'w2a2'])
def test_head_rows_quantize_the_regression_alone(small, name, layers, bits):
    model = small.build(name).eval()
    qconfig = resolve(f'{bits}_head-mse')['qconfig']
    report = prepare(model, build_qconfig(qconfig))
    quantized = {
        row.name: row for row in report.rows if row.status == 'quantized'
    }
    assert set(quantized) == layers
    for row in quantized.values():
        assert row.weight_bits == row.activation_bits == int(bits[1])


def offline(config):
    """Leave out what would download weights."""
    if isinstance(config, dict):
        return {
            key: None if key in ('init_cfg', 'pretrained') else offline(item)
            for key, item in config.items()
        }
    if isinstance(config, (list, tuple)):
        return type(config)(offline(item) for item in config)
    return config


@pytest.mark.slow
@pytest.mark.parametrize('name', COCO)
def test_zoo_detector_gets_its_grid(name):
    config = Config.fromfile(FOLDER / f'{name}.py')
    settings = Config(dict(model=offline(config.model.to_dict()))).model
    settings['backbone'].update(depth=18)
    neck = settings['neck']
    neck['in_channels'] = [64, 128, 256, 512][-len(neck['in_channels']) :]
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(settings)
    losses = grid_losses(model)
    assert losses
    assert {loss.uncertainty for loss in losses} == {'min'}
    assert all(loss.grid.num_points > 1 for loss in losses)


@pytest.mark.parametrize('name', OTHER)
def test_other_sets_change_data_and_classes_only(name):
    stem, _, data = name.rpartition('_')
    config = Config.fromfile(FOLDER / f'{name}.py')
    coco = Config.fromfile(FOLDER / f'{stem}_coco.py')
    head = (
        config.model.roi_head.bbox_head
        if 'roi_head' in config.model
        else config.model.bbox_head
    )
    heads = head if isinstance(head, list) else [head]
    assert {one.num_classes for one in heads} == {CLASSES[data]}
    for loader in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        dataset = config[loader].dataset
        assert dataset.type == 'CocoDataset'
        assert len(dataset.metainfo.classes) == CLASSES[data]
        assert dataset.pipeline == coco[loader].dataset.pipeline
        assert dataset.ann_file != coco[loader].dataset.ann_file
        assert dataset.data_prefix.img.endswith('images/')
    assert config.train_dataloader.dataset.ann_file != (
        config.val_dataloader.dataset.ann_file
    )
    assert config.val_evaluator.type == 'CocoMetric'
    assert config.val_evaluator.ann_file.endswith(
        config.val_dataloader.dataset.ann_file
    )
    assert config.optim_wrapper == coco.optim_wrapper
    json.dumps(config.to_dict(), default=str)
