"""The chosen bits are the best that the budgets allow."""

import itertools

import pytest

from taskptq.analysis.mixed_precision import solver
from taskptq.analysis.mixed_precision.cost import (
    BitOperations,
    MacsAbove,
    WeightBytes,
    cost_of,
    uniform_choice,
)
from taskptq.analysis.mixed_precision.limits import Limit, Task
from taskptq.analysis.mixed_precision.solver import solve

COSTS = [BitOperations(), WeightBytes(relative=True), MacsAbove()]


@pytest.fixture(params=['milp', 'greedy'])
def kind(request, monkeypatch):
    if request.param == 'milp':
        pytest.importorskip('scipy')
    available = request.param == 'milp'
    monkeypatch.setattr(solver, 'is_available', lambda: available)
    return request.param


def every_choice(problem):
    """Yield each combination of candidates; layers are float as a whole."""
    keys = list(problem.units)
    for bits in itertools.product(
        *(problem.units[key].candidates for key in keys)
    ):
        choice = dict(zip(keys, bits, strict=True))
        if all(
            (choice[a] == 'float') == (choice[b] == 'float')
            for a, b in problem.pairs
        ):
            yield choice


def best_by_trial(problem, cost, most):
    """Return the least loss within a budget, by trying everything."""
    return min(
        problem.loss(choice)
        for choice in every_choice(problem)
        if cost_of(problem, cost, choice) <= most * (1 + 1e-9)
    )


@pytest.mark.parametrize('seed', range(6))
@pytest.mark.parametrize('cost', COSTS, ids=lambda cost: cost.name)
def test_the_exact_solver_finds_what_trying_everything_finds(draw, seed, cost):
    pytest.importorskip('scipy')
    problem = draw(seed, layers=3)
    costs = [cost_of(problem, cost, c) for c in every_choice(problem)]
    most = min(costs) + 0.4 * (max(costs) - min(costs))
    found = solve(problem, Task(limits=[Limit(cost=cost, most=most)]))
    assert cost_of(problem, cost, found.choice) <= most * (1 + 1e-6)
    assert found.loss == pytest.approx(
        best_by_trial(problem, cost, most), rel=3e-4
    )
    assert found.choice in list(every_choice(problem))
    assert found.solver == 'milp'
    assert found.gap <= 2e-4


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('bits', [4, 8, 16, 'float'])
@pytest.mark.parametrize('cost', COSTS, ids=lambda cost: cost.name)
def test_never_worse_than_uniform_bits_at_the_same_cost(
    draw, kind, seed, bits, cost
):
    problem = draw(seed, layers=12, candidates=(4, 8, 16, 'float'))
    uniform = uniform_choice(problem, bits)
    most = cost_of(problem, cost, uniform)
    found = solve(problem, Task(limits=[Limit(cost=cost, most=most)]))
    assert found.solver == kind
    assert cost_of(problem, cost, found.choice) <= most * (1 + 1e-6) + 1e-9
    assert found.loss <= problem.loss(uniform)


@pytest.mark.parametrize('seed', range(3))
def test_least_cost_under_a_limit_of_the_loss(draw, kind, seed):
    problem = draw(seed, layers=10)
    named = problem.loss(problem.named())
    least = problem.loss(uniform_choice(problem, 16))
    most = least + 0.3 * (named - least)
    found = solve(problem, Task(least=MacsAbove(), max_loss=most))
    assert found.loss <= most * (1 + 1e-6)
    spent = cost_of(problem, MacsAbove(), found.choice)
    assert 0 < spent < 1
    if kind == 'milp':
        less = Limit(cost=MacsAbove(), most=0.9 * spent)
        assert solve(problem, Task(limits=[less])).loss > most


def test_a_model_that_is_fine_stays_as_it_is(draw, kind):
    problem = draw(0, candidates=(8, 16))
    found = solve(problem, Task(least=MacsAbove(), max_loss=1.0))
    assert found.choice == problem.named()


def test_no_choice_keeps_an_impossible_budget(draw, kind):
    problem = draw(1)
    limit = Limit(cost=WeightBytes(), most=1.0)
    assert solve(problem, Task(limits=[limit])) is None


def test_two_budgets_hold_at_once(draw, kind):
    problem = draw(2, layers=8)
    limits = [
        Limit(cost=BitOperations(), most=0.9),
        Limit(cost=WeightBytes(relative=True), most=0.7),
    ]
    found = solve(problem, Task(limits=limits))
    for limit in limits:
        spent = cost_of(problem, limit.cost, found.choice)
        assert spent <= limit.most * (1 + 1e-6)
