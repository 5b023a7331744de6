"""A choice in a model is what its settings would have made."""

import pytest
import torch

from taskptq.analysis.mixed_precision.overrides import (
    ChangedPoints,
    changes_of,
    settings_of,
    with_settings,
)
from taskptq.calibration import calibrate
from taskptq.prepare import QConfig, prepare
from taskptq.testing import tiny_batches, tiny_model

CHANGES = {
    ('stem', 'activation'): 16,
    ('layer1.conv1', 'weight'): 4,
    ('layer1.conv2', 'weight'): 'float',
    ('layer1.conv2', 'activation'): 'float',
}


def forward(model, batch):
    return model(batch)


def calibrated(qconfig):
    model = tiny_model('conv')
    batches = tiny_batches('conv')
    prepare(model, qconfig, batch=batches[0])
    calibrate(model, batches, forward=forward)
    return model, batches


@pytest.fixture
def qconfig():
    return QConfig.from_dict(dict(keep_float=['head']))


def numbers(model):
    return {
        name: value.clone()
        for name, value in model.state_dict().items()
        if '_quantizer' in name
    }


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_in_place_and_from_the_start(qconfig):
    model, batches = calibrated(qconfig)
    changed = with_settings(qconfig, settings_of(CHANGES))
    ChangedPoints(model, changed, changed=CHANGES, edges=()).calibrate(
        batches, forward=forward
    )
    fresh, _ = calibrated(changed)
    assert_equal(numbers(model), numbers(fresh))
    assert model.stem.input_quantizer.spec.num_bits == 16
    assert model.layer1.conv2.weight_quantizer is None


def test_undo(qconfig):
    model, batches = calibrated(qconfig)
    before = numbers(model)
    changed = ChangedPoints(
        model,
        with_settings(qconfig, settings_of(CHANGES)),
        changed=CHANGES,
        edges=(),
    )
    changed.calibrate(batches, forward=forward)
    changed.undo()
    assert_equal(numbers(model), before)


def test_settings_are_added_after_those_of_the_recipe(qconfig):
    settings = settings_of(CHANGES)
    assert settings['keep_float'] == ['layer1.conv2']
    found = with_settings(qconfig, settings)
    assert found.keep_float == ('head', 'layer1.conv2')
    assert [o['pattern'] for o in found.overrides] == ['stem', 'layer1.conv1']


def test_a_name_that_looks_like_a_pattern():
    settings = settings_of({('a[0]', 'weight'): 4})
    assert settings['overrides'][0]['pattern'] == r're:a\[0\]'


def test_only_what_differs_from_the_recipe_is_a_change(draw):
    problem = draw(0)
    assert changes_of(problem, problem.named()) == {}
    key = ('layer0', 'activation')
    assert changes_of(problem, {**problem.named(), key: 16}) == {key: 16}
