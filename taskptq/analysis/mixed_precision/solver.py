"""Choose bits under budgets: exactly with scipy, greedily without."""

from __future__ import annotations

from dataclasses import replace

from taskptq.analysis.mixed_precision.cost import (
    Problem,
    cost_of,
    uniform_choice,
)
from taskptq.analysis.mixed_precision.greedy import best_greedy
from taskptq.analysis.mixed_precision.limits import (
    Limit,
    Solution,
    Task,
    fits,
)
from taskptq.analysis.mixed_precision.milp import best_exact, is_available

__all__ = ['solve']


def solve(problem: Problem, task: Task) -> Solution | None:
    """Find the best choice.

    Of choices that cost the same, the one of least loss is taken.

    Args:
        problem: Units and products.
        task: What is minimized, and the budgets.

    Returns:
        The solution; None if no choice keeps the limits.
    """
    best = best_exact if is_available() else best_greedy
    found = best(problem, task)
    if found is None:
        return None
    if task.least is None:
        return _not_worse_than_uniform(problem, task, found)
    spent = Limit(
        cost=task.least, most=cost_of(problem, task.least, found.choice)
    )
    again = best(
        problem, replace(task, least=None, limits=[*task.limits, spent])
    )
    return again or found


def _not_worse_than_uniform(
    problem: Problem, task: Task, found: Solution
) -> Solution:
    """Return a uniform choice where it loses less, within a solver's gap."""
    candidates = {b for unit in problem.units.values() for b in unit.losses}
    for bits in candidates:
        choice = uniform_choice(problem, bits)
        loss = problem.loss(choice)
        if loss < found.loss and fits(problem, task, choice):
            found = replace(found, choice=choice, loss=loss)
    return found
