"""The front goes from the cheapest choice to the best that a budget buys."""

import pytest

from taskptq.analysis.mixed_precision.front import find_front
from taskptq.analysis.mixed_precision.settings import MixedPrecisionConfig


def front_of(problem, **settings):
    return find_front(problem, MixedPrecisionConfig(**settings))


@pytest.fixture
def problem(draw):
    return draw(4, layers=8, candidates=(8, 16, 'float'))


def test_each_point_costs_more_and_loses_less(problem):
    front = front_of(problem, budget=dict(macs_above=0.4))
    costs = [point.cost for point in front.points]
    losses = [point.loss for point in front.points]
    assert costs == sorted(costs)
    assert losses == sorted(losses, reverse=True)
    assert len(set(losses)) == len(losses) > 3
    assert costs[0] == 0
    assert costs[-1] <= 0.4 * (1 + 1e-6)
    assert front.own.origin == 'recipe'
    assert front.allows(front.own)
    assert [point.origin for point in front.others] == ['recipe']


def test_candidates_start_with_the_cheapest_that_promises_enough(problem):
    front = front_of(problem, budget=dict(macs_above=0.6))
    most = 0.4 * front.own.loss
    found = list(front.candidates(most))
    assert found[0].loss <= most
    assert found[-1] == front.points[-1]
    cheaper = [p for p in front.points if p.cost < 0.99 * found[0].cost]
    assert all(point.loss > most for point in cheaper)
    assert [p.cost for p in found] == sorted(p.cost for p in found)


def test_the_best_is_tried_where_nothing_promises_enough(problem):
    front = front_of(problem, budget=dict(macs_above=0.1))
    assert list(front.candidates(1e-12)) == [front.points[-1]]


def test_without_a_budget_bit_operations_are_spared(draw):
    problem = draw(2, candidates=(4, 8))
    front = front_of(problem, candidates=[4, 8])
    assert front.axis.name == 'bops'
    assert front.points[0].cost < front.own.cost
    assert [p.origin for p in front.others] == ['recipe', 'uniform 4']
    plain = front.to_dict()
    assert plain['unit'] == 'of 8 x 8 bits'
    assert plain['points'][-1]['changed_points'] == 0


def test_a_budget_that_nothing_keeps_is_refused(draw):
    with pytest.raises(ValueError, match=r'budget.*bytes.*no choice of'):
        front_of(draw(0), budget=dict(bytes=0.1), candidates=[8, 16])
