"""The program knows that a product's cost depends on both operands."""

import pytest

from taskptq.analysis.mixed_precision.cost import (
    BitOperations,
    Joint,
    Problem,
    cost_of,
)
from taskptq.analysis.mixed_precision.limits import Limit, Task
from taskptq.analysis.mixed_precision.milp import best_exact, is_available
from taskptq.analysis.mixed_precision.units import Unit

pytest.importorskip('scipy')


def make_unit(layer, losses):
    return Unit(
        layer=layer,
        point='query',
        names=(layer,),
        num_bits=8,
        losses=losses,
    )


def test_scipy_is_found():
    assert is_available()


def test_one_tensor_read_by_two_products():
    """Lowering the shared tensor saves twice, at the price of one loss."""
    units = [
        make_unit('shared', {4: 0.5, 8: 0.0}),
        make_unit('a', {4: 0.3, 8: 0.0}),
        make_unit('b', {4: 0.3, 8: 0.0}),
    ]
    problem = Problem(
        units={unit.key: unit for unit in units},
        joints=[
            Joint(first=('shared', 'query'), second=(x, 'query'), macs=10)
            for x in ('a', 'b')
        ],
    )
    limit = Limit(cost=BitOperations(), most=0.5)
    found = best_exact(problem, Task(limits=[limit]))
    assert found.choice == {
        ('shared', 'query'): 4,
        ('a', 'query'): 8,
        ('b', 'query'): 8,
    }
    assert cost_of(problem, BitOperations(), found.choice) == 0.5


def test_nothing_fits(draw):
    limit = Limit(cost=BitOperations(), most=0.0)
    assert best_exact(draw(0), Task(limits=[limit])) is None


def test_losses_of_any_size_are_told_apart(draw):
    """The solver's tolerances are absolute, and losses may be tiny."""
    problem = draw(3, layers=5)
    small = Problem(
        units={
            key: make_like(unit, 1e-9) for key, unit in problem.units.items()
        },
        joints=problem.joints,
    )
    limit = Limit(cost=BitOperations(), most=9.0)
    task = Task(limits=[limit])
    assert best_exact(small, task).choice == best_exact(problem, task).choice


def make_like(unit, factor):
    losses = {bits: factor * loss for bits, loss in unit.losses.items()}
    return type(unit)(**{**vars(unit), 'losses': losses})
