"""Other grids are tried first, and stay only if they gain much."""

import json

import pytest
import torch

from taskptq import quantize
from taskptq.core.settings import SettingError
from taskptq.engine.recipe import Recipe
from taskptq.export.checkpoint import load
from taskptq.methods.ptq4sam.power_of_two import PowerOfTwoQuantizer
from taskptq.testing import tiny_batches, tiny_model

BROKEN = dict(
    weight=dict(num_bits=8),
    activation=dict(num_bits=16),
    softmax=dict(num_bits=2),
    edge_bits=None,
)
POWERS = dict(softmax=dict(type='power_of_two', num_bits=8))


def run(tmp_path, *, cures, keep=0.9999, name='transformer', qconfig=BROKEN):
    """Quantize a tiny model; return it, its report and the file's payload."""
    settings = dict(
        keep=keep, budget=dict(macs_above=0.0), candidates=[8], cures=cures
    )
    model, report = quantize(
        tiny_model(name),
        tiny_batches(name),
        recipe=dict(qconfig=qconfig, mixed_precision=settings),
        out=tmp_path / 'q.pth',
    )
    return model, report['mixed_precision'], load(tmp_path / 'q.pth')


def powers_of(model):
    return [m for m in model.modules() if isinstance(m, PowerOfTwoQuantizer)]


def test_a_cure_that_gains_much_stays(tmp_path):
    model, report, payload = run(tmp_path, cures=[POWERS])
    (tried,) = report['cures']
    assert tried['kept']
    assert tried['loss_after'] <= 0.5 * tried['loss_before']
    assert tried['loss_before'] == report['named_loss']
    assert report['final_loss'] == pytest.approx(tried['loss_after'], rel=0.3)
    assert len(powers_of(model)) == tried['points'] > 0
    added = payload['recipe']['qconfig']['overrides']
    assert len(added) == tried['points']
    assert report['settings']['overrides'] == added
    # What was asked for tests the file without a warning.
    asked = Recipe.from_config(
        BROKEN,
        mixed_precision=dict(
            keep=0.9999,
            budget=dict(macs_above=0.0),
            candidates=[8],
            cures=[POWERS],
        ),
    )
    assert asked.differences({**payload['recipe'], 'rewrites': []}) == []


def test_the_written_recipe_has_the_cure(tmp_path):
    model, _, _ = run(tmp_path, cures=[POWERS])
    again, _ = quantize(
        tiny_model('transformer'),
        tiny_batches('transformer'),
        recipe=tmp_path / 'chosen_recipe.py',
        out=tmp_path / 'again' / 'q.pth',
    )
    batch = tiny_batches('transformer')[0]
    with torch.no_grad():
        assert torch.equal(model(batch), again(batch))


def test_a_cure_that_gains_little_is_undone(tmp_path):
    same = dict(softmax=dict(num_bits=2))
    model, report, payload = run(tmp_path, cures=[same, POWERS])
    assert [one['kept'] for one in report['cures']] == [False, True]
    assert report['cures'][0]['loss_after'] == pytest.approx(
        report['named_loss']
    )
    model, report, payload = run(tmp_path, cures=[same])
    assert not powers_of(model)
    assert payload['recipe']['qconfig']['overrides'] == []


def test_nothing_is_tried_on_a_model_that_is_fine(tmp_path):
    model, report, _ = run(tmp_path, cures=[POWERS], keep=0.01, qconfig=dict())
    assert 'cures' not in report
    assert not powers_of(model)


def test_a_model_without_the_point_has_nothing_to_cure(tmp_path):
    _, report, _ = run(tmp_path, cures=[POWERS], name='conv')
    assert 'cures' not in report


@pytest.mark.parametrize(
    ('cure', 'words'),
    [
        (dict(softmax=dict(type='nowhere')), 'nowhere'),
        (dict(softmax=dict(num_bit=2)), 'num_bit'),
        (dict(soft=dict(num_bits=2)), 'soft'),
    ],
)
def test_a_bad_cure_is_one_sentence_before_the_work(cure, words):
    with pytest.raises((SettingError, ValueError), match=words) as error:
        Recipe.from_config({}, mixed_precision=dict(cures=[cure]))
    assert '\n' not in str(error.value)


def test_cures_are_plain_in_the_file(tmp_path):
    _, _, payload = run(tmp_path, cures=[POWERS])
    recorded = payload['recipe']['mixed_precision']
    assert json.loads(json.dumps(recorded))['cures'] == recorded['cures']
    assert Recipe.from_config(
        {}, mixed_precision=recorded
    ).mixed_precision.cures == tuple(recorded['cures'])
