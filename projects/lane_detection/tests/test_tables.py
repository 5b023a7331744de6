"""Tables: rows, grounds, and that calibration sees none of the latter."""

import importlib
from pathlib import Path

import pytest
import yaml
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.evaluator import Evaluator

from lane_detection.roads import RoadSet, generate
from taskptq.engine.calibration_config import CalibrationConfig
from taskptq.engine.calibration_data import (
    EvaluationSource,
    build_calibration,
)
from taskptq.engine.datasets import image_paths
from taskptq.recipes import resolve

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / 'projects/lane_detection/configs'
TABLES = sorted(CONFIGS.glob('*.table.yml'))
# The others show one model on further data.
LADDERS = [path for path in TABLES if 'discriminating:' in path.read_text()]
GROUNDS = sorted((CONFIGS / '_base_/grounds').glob('*.py'))
MODELS = {
    'scnn',
    'resa',
    'laneatt',
    'bezierlanenet',
    'ganet',
    'condlanenet',
    'lstr',
}
SEEDED = {'scnn', 'laneatt', 'ganet', 'lstr'}


@pytest.fixture
def tools():
    """Import a module by its dotted name."""
    return importlib.import_module


def model_of(path):
    return path.name.partition('_')[0]


def test_every_model_has_a_table():
    assert {model_of(path) for path in TABLES} == MODELS


@pytest.mark.parametrize('path', LADDERS, ids=model_of)
def test_rows(tools, path):
    table = tools('taskptq.bench.table').read_table(path)
    rows = table.rows()
    for row in rows:
        assert row.recipe.startswith(f'lane_detection::{row.bits}_')
        assert resolve(row.recipe)
    names = {row.name for row in rows}
    bits = table.discriminating
    ladder = ('w8a8', 'w6a6', 'w4a4', 'w3a3', 'w2a4')
    assert names >= {
        f'{method} {one} 0'
        for one in ladder
        for method in ('minmax', 'mse', 'aciq')
    }
    learned = (
        'adaround',
        'brecq',
        'qdrop',
        'network-uniform',
        'sgf',
        'sas',
        'selective-focus',
        'qdrop+network-uniform',
        'ours',
        'qdrop+selective-focus',
        'qdrop+ours-s',
    )
    assert names >= {f'{method} {bits} 0' for method in learned}
    assert names >= {'qdrop w4a4 0', 'selective-focus w4a4 0'}
    seeds = {row.seed for row in rows if row.method == 'qdrop'}
    assert seeds == ({0, 1, 2} if model_of(path) in SEEDED else {0})
    assert Path(table.config).is_file()
    assert table.metric in table.columns.values()


@pytest.mark.parametrize('path', TABLES, ids=model_of)
def test_targets_are_understood(tools, path):
    content = yaml.safe_load(path.read_text())
    empty = {'rows': [], 'float': None}
    records = tools('taskptq.bench.targets').evaluate_targets(
        content['targets'], empty
    )
    assert {record['status'] for record in records} == {'missing'}


def test_target_sets_name_tables(tools):
    collect = tools('taskptq.cli.collect')
    entries = collect.find_entries(ROOT)
    sets = collect.find_sets(ROOT, entries)
    members = {member.table.name for member in sets['lanes'].members}
    assert members == {
        path.name.removesuffix('.table.yml') for path in LADDERS
    }
    for name in ('lanes', 'lanes-roads'):
        for target in sets[name].targets.targets:
            evaluate_set = tools('taskptq.bench.target_sets').evaluate_set
            assert evaluate_set(target, sets[name].members)['of_tables'] >= 6


def read_grounds(path, tmp_path):
    """Grounds of ``path``, with a few drawn roads and a float reference."""
    cfg = Config.fromfile(path)
    sets = cfg.val_dataloader.dataset.datasets
    for one in sets:
        if 'roads' in one.data_root:
            generate(tmp_path / 'roads', RoadSet(num_train=1, num_val=4))
            one.data_root = str(tmp_path / 'roads')
        else:
            one.data_root = str(ROOT / one.data_root)
    calibration = cfg.train_dataloader.dataset
    calibration.data_root = str(ROOT / calibration.data_root)
    return cfg


@pytest.mark.data('culane_mini', 'tusimple_mini')
@pytest.mark.parametrize('path', GROUNDS, ids=lambda path: path.stem)
def test_calibration_sees_no_ground(path, tmp_path):
    cfg = read_grounds(path, tmp_path)
    evaluated = DATASETS.build(cfg.val_dataloader.dataset)
    batches = build_calibration(
        CalibrationConfig(num_images=64),
        source=EvaluationSource(dataset=evaluated, collate=list, batch_size=8),
        default=cfg.train_dataloader.dataset,
    )
    assert len(batches.paths) == 64
    found = image_paths(evaluated)
    assert not batches.paths & found
    culane = {p for p in batches.paths | found if '05151649_0422' in p}
    assert len(culane) == 170
    sample = batches[0][0]['data_samples']
    expected = evaluated[len(evaluated) - 1]['data_samples']
    assert sample.img_shape == expected.img_shape
    # The 64 are the first of the list, whatever the seed.
    first = (ROOT / 'data/culane_mini/list/train.txt').read_text().split()
    assert {Path(p).name for p in batches.paths} == {
        Path(p).name for p in first[:64]
    }


@pytest.mark.data('culane_mini', 'tusimple_mini')
@pytest.mark.parametrize('path', GROUNDS, ids=lambda path: path.stem)
def test_one_pass_gives_every_ground(tools, path, tmp_path):
    """The float model's own lanes agree with themselves."""
    cfg = read_grounds(path, tmp_path)
    placed = tools('taskptq.bench.float_runner').placed
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    # Annotations stand for predictions.
    samples = []
    for index in (*range(0, len(dataset), 4), len(dataset) - 1):
        sample = dataset[index]['data_samples']
        sample.pred_lanes = sample.gt_lanes
        samples.append(sample)
    metrics = {}
    for key in ('reference_evaluator', 'val_evaluator'):
        evaluator = Evaluator(placed(cfg[key], tmp_path))
        evaluator.process(data_samples=samples)
        metrics = evaluator.evaluate(len(samples))
    tables = [yaml.safe_load(one.read_text()) for one in TABLES]
    table = next(
        one for one in tables if Path(one['grounds']).name == path.name
    )
    found = {key: metrics[key] for key in table['columns'].values()}
    assert found.pop('agreement/lds') == pytest.approx(0, abs=1e-2)
    # An annotated lane without points or with gaps is no prediction.
    assert all(0.9 < value <= 1 for value in found.values())
    assert found['agreement/F1_50'] == 1
