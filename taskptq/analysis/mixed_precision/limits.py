"""Budgets and solutions, as both solvers know them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from taskptq.analysis.mixed_precision.cost import (
    Choice,
    Cost,
    Problem,
    cost_of,
)
from taskptq.analysis.mixed_precision.units import Bits, Key

__all__ = ['Limit', 'Solution', 'Task', 'fits']

# Slack for sums of floats.
ROUNDING = 1e-9


@dataclass(frozen=True, kw_only=True)
class Limit:
    """A budget.

    Args:
        cost: What is counted.
        most: Upper bound.
    """

    cost: Cost
    most: float

    @property
    def with_slack(self) -> float:
        """The bound, with room for rounding."""
        return self.most + ROUNDING * max(abs(self.most), 1.0)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a solver is to find.

    Args:
        limits: Budgets.
        least: Minimize this cost instead of the loss.
        max_loss: Largest estimated loss; None sets no limit.
    """

    limits: Sequence[Limit] = ()
    least: Cost | None = None
    max_loss: float | None = None


@dataclass(frozen=True, kw_only=True)
class Solution:
    """A choice of bits.

    Args:
        choice: Key of a unit -> bits.
        loss: Estimated loss.
        solver: 'milp' or 'greedy'.
        gap: Relative distance to the best bound that the solver proved; None
            if nothing is proved.
    """

    choice: dict[Key, Bits]
    loss: float
    solver: str
    gap: float | None


def fits(problem: Problem, task: Task, choice: Choice) -> bool:
    """Whether a choice keeps all budgets and the largest loss."""
    return all(
        cost_of(problem, limit.cost, choice) <= limit.with_slack
        for limit in task.limits
    ) and (task.max_loss is None or problem.loss(choice) <= task.max_loss)
