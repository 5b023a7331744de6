"""Bits are chosen, verified, written down and rebuilt bit for bit."""

import json

import pytest
import torch

from taskptq import quantize
from taskptq.core.settings import SettingError
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


def test_a_file_restores_and_its_recipe_counts_as_the_same(tmp_path):
    settings = dict(
        keep=0.9999, budget=dict(macs_above=0.5), candidates=[8, 'float']
    )
    recipe = dict(qconfig=POINTS, mixed_precision=settings)
    model = tiny_model('conv')
    batches = tiny_batches('conv')
    quantize(model, batches, recipe=recipe, out=tmp_path / 'q.pth')
    payload = load(tmp_path / 'q.pth')
    other = tiny_model('conv')
    restore_model(payload, other)
    with torch.no_grad():
        assert torch.equal(model(batches[0]), other(batches[0]))
    asked = Recipe.from_config(POINTS, mixed_precision=settings)
    assert asked.differences({**payload['recipe'], 'rewrites': []}) == []
    more = Recipe.from_config(
        POINTS, mixed_precision={**settings, 'keep': 0.9}
    )
    assert 'mixed_precision' in more.differences(payload['recipe'])


def test_gptq_comes_before_what_costs_at_run_time(tmp_path):
    settings = dict(
        keep=0.999,
        budget=dict(macs_above=0.2),
        candidates=[8],
        reconstruction=dict(rounding='gptq'),
    )
    report, payload = run(
        'conv', tmp_path, dict(qconfig=POINTS, mixed_precision=settings)
    )
    found = report['mixed_precision']
    assert found['rounding'] == 'gptq'
    assert payload['recipe']['reconstruction']['rounding'] == 'gptq'
    # The config that was asked for tests the file without a warning.
    asked = Recipe.from_config(POINTS, mixed_precision=settings)
    assert asked.differences({**payload['recipe'], 'rewrites': []}) == []
    assert found['final_loss'] < found['named_loss']
    assert found['verified'] == (found['final_loss'] <= found['allowed'])
    assert found['costs']['macs_above'] <= 0.2
    _, other = run('conv', tmp_path / 'b', tmp_path / 'chosen_recipe.py')
    assert_same_content(other, payload)


def test_the_choice_knows_ranges_and_roundings_that_follow(tmp_path):
    """They count in the choice, and its recipe makes the same file."""
    settings = dict(
        keep=0.999, budget=dict(macs_above=0.5), candidates=[8, 'float']
    )
    recipe = dict(
        qconfig=POINTS,
        reconstruction=dict(rounding='gptq', input_ranges=True),
        mixed_precision=dict(settings, preview_rounding=True),
    )
    report, payload = run('conv', tmp_path, recipe)
    found = report['mixed_precision']
    assert found['changes']
    assert report['reconstruction']['input_ranges']
    _, other = run('conv', tmp_path / 'again', tmp_path / 'chosen_recipe.py')
    assert_same_content(other, payload)
    plain, _ = run(
        'conv', tmp_path / 'plain', {**recipe, 'mixed_precision': settings}
    )
    named = [r['mixed_precision']['named_loss'] for r in (report, plain)]
    assert named[0] == named[1]
    losses = [
        r['mixed_precision']['front']['others'][0]['loss']
        for r in (report, plain)
    ]
    assert losses[0] != losses[1]


def test_nothing_is_estimated_for_a_model_that_is_fine(tmp_path):
    settings = dict(keep=0.5, budget=dict(macs_above=0.2))
    report, payload = run(
        'conv', tmp_path, dict(qconfig={}, mixed_precision=settings)
    )
    found = report['mixed_precision']
    assert found['verified']
    # Freezing may round exact ties to the other side.
    assert found['final_loss'] == pytest.approx(found['named_loss'], rel=0.2)
    assert 'front' not in found
    assert payload['recipe']['reconstruction'] is None
    plain, other = run('conv', tmp_path / 'plain', dict(qconfig={}))
    assert 'mixed_precision' not in plain
    assert_same_content(other, payload)


def test_a_model_that_cannot_be_compared_keeps_the_recipe(tmp_path, caplog):
    class Constant(torch.nn.Module):
        """Gives the same output for every input."""

        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return self.conv(x) * 0

    _, report = quantize(
        torch.nn.Sequential(Constant()),
        tiny_batches('conv'),
        recipe=dict(qconfig={}, mixed_precision={}),
        out=tmp_path / 'q.pth',
    )
    assert (
        'no output of the float model varies'
        in (report['mixed_precision']['skipped'])
    )


def test_settings_are_checked_before_the_work():
    with pytest.raises(SettingError, match=r'mixed_precision\.keep=2'):
        quantize(
            tiny_model('conv'),
            tiny_batches('conv'),
            recipe=dict(qconfig={}, mixed_precision=dict(keep=2)),
        )


def test_batches_that_an_adapter_cannot_read(tmp_path, monkeypatch):
    from taskptq.engine.in_memory import ForwardAdapter

    def refuse(self, model, batch):
        raise KeyError('inputs')

    monkeypatch.setattr(ForwardAdapter, 'forward_heads', refuse)
    report, payload = run(
        'conv', tmp_path, dict(qconfig={}, mixed_precision={})
    )
    assert 'inputs' in report['mixed_precision']['skipped']
    assert payload['recipe']['qconfig']['overrides'] == []


def test_weights_of_fewer_bits_are_rounded_better(tmp_path):
    settings = dict(
        keep=0.5,
        candidates=[4, 8],
        reconstruction=dict(rounding='gptq'),
    )
    report, payload = run(
        'conv', tmp_path, dict(qconfig={}, mixed_precision=settings)
    )
    found = report['mixed_precision']
    assert found['rounding'] == 'gptq'
    assert found['costs']['bops'] < 1
    assert {entry['num_bits'] for entry in payload['weights'].values()} == {
        4,
        8,
    }
