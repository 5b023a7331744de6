"""Bits are chosen, verified, written down and rebuilt bit for bit."""

import copy
import json

import pytest
import torch

from taskptq import quantize
from taskptq.core.settings import SettingError
from taskptq.engine.in_memory import quantize_in_memory
from taskptq.engine.recipe import Recipe
from taskptq.engine.restore import restore_model
from taskptq.export.checkpoint import load
from taskptq.testing import tiny_batches, tiny_model

# Loss limits that no tiny model with random weights meets by accident.
STRICT = dict(keep=0.9999)
POINTS = dict(
    weight=dict(num_bits=4), activation=dict(num_bits=4), edge_bits=None
)


def run(name, tmp_path, recipe, **settings):
    """Quantize a tiny model; return the report and the file's payload."""
    model = tiny_model(name)
    with torch.no_grad():
        _, report = quantize(
            model,
            tiny_batches(name),
            recipe=recipe,
            out=tmp_path / 'q.pth',
            **settings,
        )
    return report, load(tmp_path / 'q.pth')


def assert_same_content(first, second):
    """Whether two files hold the same numbers, bit for bit."""
    assert first['weights'].keys() == second['weights'].keys()
    for key, entry in first['weights'].items():
        other = second['weights'][key]
        assert torch.equal(entry.pop('packed'), other.pop('packed')), key
        assert entry == other
    for section in ('quantizers', 'float'):
        assert first[section].keys() == second[section].keys()
        for key, tensor in first[section].items():
            assert torch.equal(tensor, second[section][key]), key


@pytest.mark.parametrize('name', ['conv', 'transformer', 'window'])
@pytest.mark.parametrize(
    'settings',
    [
        dict(budget=dict(macs_above=0.5), candidates=[8, 16, 'float']),
        dict(budget=dict(bops=0.6), candidates=[4, 8, 16]),
    ],
    ids=['macs_above', 'bops'],
)
def test_the_written_recipe_makes_the_same_file(name, settings, tmp_path):
    chosen, payload = run(
        name,
        tmp_path,
        dict(qconfig=POINTS, mixed_precision={**STRICT, **settings}),
    )
    report = chosen['mixed_precision']
    assert report['changes']
    again, other = run(name, tmp_path / 'again', tmp_path / 'chosen_recipe.py')
    assert_same_content(other, payload)
    assert other['structure']['decisions'] == payload['structure']['decisions']
    assert again['swap'] == chosen['swap']
    rows = [
        json.loads((folder / 'swap_report.json').read_text())['modules']
        for folder in (tmp_path, tmp_path / 'again')
    ]
    assert rows[0] == rows[1]
