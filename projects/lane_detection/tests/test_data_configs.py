"""The data sets' base configs parse, build, and give batches."""

from pathlib import Path

import pytest
import torch
from mmdet.registry import DATASETS, HOOKS, TRANSFORMS
from mmengine.config import Config
from mmengine.dataset import pseudo_collate

from lane_detection.roads import RoadSet, generate
from taskptq.engine.datasets import image_paths, leaf_datasets

BASE = Path(__file__).resolve().parents[1] / 'configs/_base_'
# What several sets inherit.
SHARED = {'pipelines', 'loaders', 'small_loaders'}
NAMES = sorted({p.stem for p in (BASE / 'datasets').glob('*.py')} - SHARED)
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def load(name):
    return Config.fromfile(BASE / 'datasets' / f'{name}.py')


@pytest.fixture(scope='module')
def roads_root(tmp_path_factory):
    root = tmp_path_factory.mktemp('roads') / 'culane'
    generate(root, RoadSet(num_train=4, num_val=4, seed=3))
    return root


def test_all_are_there():
    assert set(NAMES) == {
        'culane',
        'culane_mini',
        'culane_roads',
        'curvelanes',
        'roads',
        'tusimple',
        'tusimple_mini',
    }


@pytest.mark.parametrize('name', NAMES)
def test_loaders_are_whole(name):
    cfg = load(name)
    for loader in (key for key in LOADERS if key in cfg):
        for leaf in leaf_datasets(cfg[loader].dataset):
            steps = [step.type for step in leaf.pipeline]
            for step in leaf.pipeline:
                TRANSFORMS.build(step)
            assert leaf.input_frame.size
            labels = steps.index('LoadLaneAnnotations')
            training = loader == 'train_dataloader'
            assert (labels < steps.index('LaneResize')) == training
            assert bool(leaf.get('test_mode')) != training
    assert cfg.val_evaluator.type
    assert cfg.test_evaluator.type


def test_runtime():
    cfg = Config.fromfile(BASE / 'runtime/lane.py')
    assert cfg.custom_imports.imports == ['lane_detection']
    hook = HOOKS.build(cfg.default_hooks.visualization)
    assert type(hook).__name__ == 'LaneVisualizationHook'
    assert not hook.draw
    assert 'timer' in cfg.default_hooks


def test_roads(roads_root):
    cfg = load('roads')
    for loader in LOADERS:
        config = cfg[loader].dataset
        config.data_root = str(roads_root)
        dataset = DATASETS.build(config)
        batch = pseudo_collate([dataset[i] for i in range(4)])
        assert torch.stack(batch['inputs']).shape == (4, 3, 144, 400)
        for sample in batch['data_samples']:
            assert sample.ori_shape == (590, 1640)
            assert sample.img_shape == (144, 400)
            for points in sample.gt_lanes.points:
                if sample.lane_frame == 'input':
                    assert points[:, 1].max() < 400


@pytest.mark.data('culane_mini')
def test_union(roads_root):
    cfg = load('culane_roads')
    for loader in LOADERS:
        cfg[loader].dataset.datasets[1].data_root = str(roads_root)
    train = DATASETS.build(cfg.train_dataloader.dataset)
    assert len(train) == 4 * 130 + 4
    val = DATASETS.build(cfg.val_dataloader.dataset)
    categories = [val[i]['data_samples'].category for i in (0, 39, 40, 43)]
    assert categories == ['culane_mini'] * 2 + ['roads'] * 2
    assert val[0]['inputs'].shape == val[43]['inputs'].shape
    assert not image_paths(train) & image_paths(val)
    ids = {val.get_data_info(i)['img_id'] for i in range(len(val))}
    assert len(ids) == len(val)


@pytest.mark.data('culane_mini', 'tusimple_mini')
@pytest.mark.parametrize('name', ['culane_mini', 'tusimple_mini'])
def test_real_sets(name):
    cfg = load(name)
    for loader in (key for key in LOADERS if key in cfg):
        dataset = DATASETS.build(cfg[loader].dataset)
        item = dataset[1]
        frame = leaf_datasets(cfg[loader].dataset)[0].input_frame
        assert item['inputs'].shape[1:] == tuple(frame.size)
        assert len(item['data_samples'].gt_lanes) > 0
