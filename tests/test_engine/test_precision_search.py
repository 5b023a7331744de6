"""The cheapest choice that holds stays; the best one where none does."""

import pytest
import torch

from taskptq.analysis.mixed_precision.cost import build_problem
from taskptq.analysis.mixed_precision.front import find_front
from taskptq.analysis.mixed_precision.operands import trace_operands
from taskptq.analysis.mixed_precision.settings import MixedPrecisionConfig
from taskptq.analysis.mixed_precision.units import group_units
from taskptq.analysis.mixed_precision.verify import Reference
from taskptq.analysis.sensitivity.gradient import estimate_losses
from taskptq.calibration import calibrate
from taskptq.engine.precision_search import MOST_TRIALS, Search
from taskptq.prepare import QConfig, prepare
from taskptq.testing import tiny_batches, tiny_model


class Adapter:
    """The scores, all of the same weight."""

    def forward_heads(self, model, batch):
        return {'scores': model(batch)}

    def output_weights(self, heads):
        return {'scores': torch.ones(())}


def forward(model, batch):
    return model(batch)


@pytest.fixture
def search():
    model, batches = tiny_model('conv'), tiny_batches('conv')
    qconfig = QConfig.from_dict(
        dict(
            weight=dict(num_bits=4),
            activation=dict(num_bits=4),
            edge_bits=None,
        )
    )
    prepare(model, qconfig, batch=batches[0])
    calibrate(model, batches, forward=forward)
    config = MixedPrecisionConfig(
        budget=dict(macs_above=0.9), candidates=[8, 'float']
    )
    found = estimate_losses(
        model, batches, forward=forward, adapter=Adapter(), candidates=[8]
    )
    units = group_units(
        found.points,
        candidates=config.candidates,
        only=config.points,
        edges=(),
    )
    products = trace_operands(model, batches[:1], forward=forward)
    return Search(
        model=model,
        batches=batches,
        forward=forward,
        reference=Reference(model, batches, adapter=Adapter()),
        front=find_front(build_problem(units, products), config),
        qconfig=qconfig,
        edges=(),
    )


def test_nothing_changes_where_all_is_fine(search):
    chosen = search.run(allowed=1e9)
    assert not chosen.changes
    assert len(search.trials) == 1


def test_the_measured_loss_decides(search):
    named = search.run(allowed=1e9).measured_loss
    chosen = search.run(allowed=0.5 * named)
    assert chosen.changes
    assert chosen.measured_loss <= 0.5 * named
    assert chosen is search.trials[-1]
    again = search.reference.measure(search.model)
    assert again.loss == chosen.measured_loss


def test_the_best_stays_where_the_budget_ends(search):
    chosen = search.run(allowed=0.0)
    losses = [trial.measured_loss for trial in search.trials]
    assert chosen.measured_loss == min(losses)
    assert 1 < len(losses) <= 1 + MOST_TRIALS
    again = search.reference.measure(search.model)
    assert again.loss == pytest.approx(chosen.measured_loss)


def test_weights_that_are_rounded_later_count_as_estimated(search):
    search.weights = False
    chosen = search.run(allowed=1e9)
    plain = search.reference.measure(search.model, weights=False).loss
    weights = sum(
        unit.losses[unit.num_bits]
        for unit in search.front.problem.units.values()
        if unit.point == 'weight'
    )
    assert chosen.measured_loss == pytest.approx(plain + weights)
