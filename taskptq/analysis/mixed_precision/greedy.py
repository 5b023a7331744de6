"""The solver without scipy: raise what gains most for its price."""

from __future__ import annotations

import math
from collections.abc import Iterator

from taskptq.analysis.mixed_precision.cost import (
    Choice,
    Cost,
    Problem,
    cost_of,
    price_of,
    uniform_choice,
)
from taskptq.analysis.mixed_precision.limits import Solution, Task, fits
from taskptq.analysis.mixed_precision.units import FLOAT, Bits, Key

__all__ = ['best_greedy']

Change = dict[Key, Bits]


def best_greedy(problem: Problem, task: Task) -> Solution | None:
    """Return the best choice on a greedy path; None if none fits.

    Uniform choices and the recipe's own compete, so that the result is never
    worse than they are.
    """
    bits = {bits for unit in problem.units.values() for bits in unit.losses}
    tried: list[dict[Key, Bits]] = [
        *_path(problem, task),
        *(uniform_choice(problem, one) for one in bits),
        problem.named(),
    ]
    fitting = [choice for choice in tried if fits(problem, task, choice)]
    if not fitting:
        return None

    def rank(choice: Choice) -> tuple[float, float]:
        loss = problem.loss(choice)
        if task.least is None:
            return loss, 0.0
        return cost_of(problem, task.least, choice), loss

    best = min(fitting, key=rank)
    return Solution(
        choice=best, loss=problem.loss(best), solver='greedy', gap=None
    )


def _path(problem: Problem, task: Task) -> Iterator[dict[Key, Bits]]:
    """Yield the choices of an ascent from the fewest bits."""
    axis = task.least or (task.limits[0].cost if task.limits else None)
    choice: dict[Key, Bits] = {
        key: unit.candidates[0] for key, unit in problem.units.items()
    }
    spent = [cost_of(problem, one.cost, choice) for one in task.limits]
    while True:
        yield dict(choice)
        step = _best_step(problem, task, axis, choice, spent)
        if step is None:
            return
        change, prices = step
        choice |= change
        spent = [a + b for a, b in zip(spent, prices, strict=True)]


def _best_step(
    problem: Problem,
    task: Task,
    axis: Cost | None,
    choice: Choice,
    spent: list[float],
) -> tuple[Change, list[float]] | None:
    """Return the raise that gains most for its price, within the budgets."""
    best, best_rate = None, -math.inf
    for change in _changes(problem, choice):
        gain = sum(
            problem.units[key].losses[choice[key]]
            - problem.units[key].losses[bits]
            for key, bits in change.items()
        )
        if gain <= 0:
            continue
        prices = [_price(problem, o.cost, choice, change) for o in task.limits]
        if any(
            before + price > limit.with_slack
            for before, price, limit in zip(
                spent, prices, task.limits, strict=True
            )
        ):
            continue
        price = 0.0
        if axis is not None:
            price = _price(problem, axis, choice, change)
        rate = gain / max(price, 1e-12)
        if rate > best_rate:
            best, best_rate = (change, prices), rate
    return best


def _changes(problem: Problem, choice: Choice) -> Iterator[Change]:
    """Yield each raise of one unit; of both where a layer becomes float."""
    for key, unit in problem.units.items():
        for bits in unit.candidates[unit.candidates.index(choice[key]) + 1 :]:
            partners = [problem.partners[key]] if bits == FLOAT else []
            yield dict.fromkeys([key, *partners], bits)


def _price(
    problem: Problem, cost: Cost, choice: Choice, change: Change
) -> float:
    now = dict(choice)
    total = 0.0
    for key, bits in change.items():
        total += price_of(problem, cost, now, key=key, bits=bits)
        now[key] = bits
    return total
