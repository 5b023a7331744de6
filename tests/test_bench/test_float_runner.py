"""The runner of a table's float model: its file, test sets and split."""

from pathlib import Path

import pytest

pytest.importorskip('mmengine')

from taskptq.bench.float_runner import (
    checkpoint_file,
    measured_config,
    placed,
)
from taskptq.bench.table import Table


def table_of(**changes):
    settings = dict(
        path=Path('a.table.yml'),
        model='m',
        dataset='d',
        config='c.py',
        checkpoint='nowhere.pth',
        metric='AP',
        groups=[],
    )
    return Table(**{**settings, **changes})


def test_missing_checkpoint_names_what_makes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere') as plain:
        checkpoint_file(table_of())
    assert 'makes it' not in str(plain.value)
    with pytest.raises(FileNotFoundError, match='`make me` makes it'):
        checkpoint_file(table_of(prepare='make me'))
    file = tmp_path / 'a.pth'
    file.touch()
    assert checkpoint_file(table_of(checkpoint=str(file))) == file


def test_config_takes_split_and_test_sets(tmp_path):
    config, sets = tmp_path / 'c.py', tmp_path / 'sets.py'
    config.write_text(
        "test_dataloader, val_dataloader = dict(a='test'), dict(a='val')\n"
        "test_evaluator, val_evaluator = dict(b='test'), dict(b='val')\n"
        "load_from = 'x.pth'\nresume = True\n"
    )
    sets.write_text("test_evaluator = dict(out='{work_dir}/a.json')\n")
    table = table_of(config=str(config), split='val')
    found = measured_config(table, tmp_path)
    assert found.test_dataloader.a == found.test_evaluator.b == 'val'
    assert found.load_from is None
    assert not found.resume
    table = table_of(config=str(config), grounds=str(sets))
    found = measured_config(table, tmp_path)
    assert found.test_evaluator.out == f'{tmp_path.as_posix()}/a.json'
    assert found.test_dataloader.a == 'test'


def test_folders_are_placed_at_any_depth():
    value = {'a': ('{work_dir}/x', [1, {'b': 'c{work_dir}'}]), 'd': None}
    assert placed(value, Path('w')) == {
        'a': ('w/x', [1, {'b': 'cw'}]),
        'd': None,
    }
    assert '{work_dir}' in value['a'][0]
