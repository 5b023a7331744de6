"""Rows that recipes name: replaced by key, stored one after another."""

import pytest

pytest.importorskip('mmengine')

from taskptq.bench import recipe_rows
from taskptq.bench.recipe_rows import (
    measure_rows,
    read_file,
    recipe_of,
    write_json,
)
from taskptq.core.setting_error import SettingError
from taskptq.engine.calibration_config import CalibrationConfig


def images(seed=0, number=4):
    return CalibrationConfig.from_dict({'num_images': number}, seed=seed)


def test_recipes_are_checked():
    recipe = recipe_of('sparse70-erk', images=images(seed=3))
    assert recipe.seed == 3
    assert recipe.qconfig.sparsity.allocation == 'erk'
    with pytest.raises(SettingError, match='best'):
        recipe_of('sparse70-best', images=images())


class Measured:
    """The float model of a table that needs no data."""

    def __init__(self, table):
        self.table = table

    def measure_float(self):
        return {
            'config': 'c.py',
            'checkpoint': 'c.pth',
            'value': 0.5,
            'sha256': '0' * 64,
            'eval_seconds': 3.0,
        }

    def environment(self):
        return {'threads': 1}


def test_rows_are_added_or_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(recipe_rows, 'Measurement', Measured)

    class Table:
        model, dataset, metric = 'net', 'set', 'ap'

    values = iter([0.1, 0.2, 0.3])

    def measure(measurement, name, config):
        assert measurement.table is table
        return {
            'recipe': name,
            'seed': config.seed,
            'images': config.num_images,
            'value': next(values),
        }

    table, path = Table(), tmp_path / 'rows' / 'net_set.json'
    tasks = [('a', images()), ('a', images(seed=1))]
    measure_rows(table, path, tasks=tasks, measure=measure)
    measure_rows(table, path, tasks=[('a', images())], measure=measure)
    stored = read_file(path)
    assert [(r['seed'], r['value']) for r in stored['rows']] == [
        (1, 0.2),
        (0, 0.3),
    ]
    assert stored['float']['value'] == 0.5
    assert 'eval_seconds' not in stored['float']


def test_files_are_read_as_written(tmp_path):
    path = tmp_path / 'a.json'
    assert read_file(path) == {'rows': []}
    write_json(path, {'rows': [{'value': 0.125}]})
    assert read_file(path) == {'rows': [{'value': 0.125}]}
