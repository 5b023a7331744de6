"""What a choice is made from."""

import pytest

from taskptq.analysis.mixed_precision.settings import MixedPrecisionConfig
from taskptq.analysis.sensitivity.gradient import NotDifferentiableError
from taskptq.calibration import calibrate
from taskptq.engine import precision_problem
from taskptq.engine.precision_problem import (
    Calibrated,
    find_problem,
    find_sensitivities,
    on_all_ranks,
)
from taskptq.prepare import QConfig, prepare
from taskptq.testing import tiny_batches, tiny_model


class Adapter:
    """The scores of a classifier."""

    def forward_heads(self, model, batch):
        return {'scores': model(batch)}

    def output_weights(self, heads):
        return {'scores': heads['scores'].detach() * 0 + 1}


def forward(model, batch):
    return model(batch)


@pytest.fixture
def calibrated():
    model, batches = tiny_model('conv'), tiny_batches('conv')
    swapped = prepare(model, QConfig.from_dict({}), batch=batches[0])
    calibrate(model, batches, forward=forward)
    return Calibrated(
        model=model,
        batches=batches,
        forward=forward,
        adapter=Adapter(),
        swapped=swapped,
        covering=[0],
    )


CONFIG = MixedPrecisionConfig(candidates=[4, 8, 16])


def test_units_and_products_of_a_model(calibrated):
    found = find_sensitivities(calibrated, calibrated.batches, CONFIG, seed=0)
    assert found.estimator == 'gradient'
    problem = find_problem(calibrated, found, CONFIG, weight_share=0.5)
    assert problem.edges == calibrated.edges == {'stem'}
    assert problem.units['stem', 'activation'].candidates == (8, 16)
    weight = problem.units['layer1.conv1', 'weight']
    assert weight.candidates == (4, 8)
    named = {point.name: point for point in found.points}
    whole = named['layer1.conv1.weight_quantizer'].losses
    assert weight.losses[4] == pytest.approx(0.5 * whole['4'])
    assert len(problem.joints) == 7


def test_without_gradients_tensors_are_measured(calibrated, monkeypatch):
    def refuse(*args, **settings):
        raise NotDifferentiableError('no gradients')

    monkeypatch.setattr(precision_problem, 'estimate_losses', refuse)
    found = find_sensitivities(calibrated, calibrated.batches, CONFIG, seed=0)
    assert found.estimator == 'alone'
    assert all('4' in point.losses for point in found.points)


def test_a_failure_is_that_of_all_ranks(monkeypatch):
    monkeypatch.setattr(
        precision_problem, 'gathered', lambda reason: ['', 'another rank']
    )
    with pytest.raises(ValueError, match='another rank'), on_all_ranks():
        pass
