"""The Pareto front: the least estimated loss at each cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from taskptq.analysis.mixed_precision.cost import (
    Choice,
    Cost,
    Problem,
    cost_of,
    named_cost,
    uniform_choice,
)
from taskptq.analysis.mixed_precision.limits import (
    Limit,
    Solution,
    Task,
    fits,
)
from taskptq.analysis.mixed_precision.settings import MixedPrecisionConfig
from taskptq.analysis.mixed_precision.solver import solve
from taskptq.analysis.mixed_precision.units import FLOAT, Bits, width

__all__ = ['Front', 'FrontPoint', 'budget_limits', 'find_front']

NUM_LEVELS = 8
# What is spared where no budget is set.
DEFAULT_COST = 'bops'


@dataclass(frozen=True, kw_only=True)
class FrontPoint:
    """One choice of bits.

    Args:
        cost: What it costs on the front's axis.
        loss: Estimated output loss.
        choice: Key of a unit -> bits.
        origin: 'milp' or 'greedy'; for comparison also 'recipe' and
            'uniform 8', which no solver chose.
        gap: What the solver proved, see ``Solution``.
    """

    cost: float
    loss: float
    choice: Choice
    origin: str
    gap: float | None = None


@dataclass(frozen=True, kw_only=True)
class Front:
    """Choices from the cheapest to the most exact.

    Args:
        problem: What they were made from.
        axis: The cost that is spared.
        limits: All budgets.
        points: The front, by rising cost.
        others: The recipe's own choice, then uniform ones.
    """

    problem: Problem
    axis: Cost
    limits: Sequence[Limit]
    points: Sequence[FrontPoint]
    others: Sequence[FrontPoint]

    @property
    def own(self) -> FrontPoint:
        """The recipe's own choice."""
        return self.others[0]

    def allows(self, point: FrontPoint) -> bool:
        """Whether a choice keeps the budgets."""
        return fits(self.problem, Task(limits=self.limits), point.choice)

    def candidates(self, max_loss: float) -> Iterator[FrontPoint]:
        """Yield what to try, the cheapest that promises enough first.

        Args:
            max_loss: Estimated loss that is low enough. If no choice within
                the budgets reaches it, the best one is the only candidate.
        """
        first = solve(
            self.problem,
            Task(limits=self.limits, least=self.axis, max_loss=max_loss),
        )
        if first is None:
            yield from self.points[-1:]
            return
        start = self._point(first)
        yield start
        for point in self.points:
            if point.cost > start.cost and point.loss < start.loss:
                yield point

    def _point(self, solution: Solution) -> FrontPoint:
        return point_of(self.problem, self.axis, solution)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types; choices as what differs from the recipe."""
        return {
            'cost': self.axis.name,
            'unit': self.axis.unit,
            'budget': {one.cost.name: one.most for one in self.limits},
            'points': [self._plain(point) for point in self.points],
            'others': [self._plain(point) for point in self.others],
        }

    def _plain(self, point: FrontPoint) -> dict[str, Any]:
        changed = sum(
            bits != self.problem.units[key].num_bits
            for key, bits in point.choice.items()
        )
        return {
            'cost': point.cost,
            'loss': point.loss,
            'origin': point.origin,
            'gap': point.gap,
            'changed_points': changed,
        }


def budget_limits(config: MixedPrecisionConfig) -> list[Limit]:
    """Return the budgets of the settings as limits."""
    return [
        Limit(
            cost=named_cost(name, limit=most, table=config.latency_table),
            most=most,
        )
        for name, most in config.budget.items()
    ]


def find_front(problem: Problem, config: MixedPrecisionConfig) -> Front:
    """Solve for the least loss at several costs up to the budget.

    Raises:
        ValueError: If no choice of the candidates keeps the budgets.
    """
    limits = budget_limits(config)
    axis = limits[0].cost if limits else named_cost(DEFAULT_COST, limit=1)
    cheapest = solve(problem, Task(limits=limits, least=axis))
    if cheapest is None:
        least = min(
            cost_of(problem, one.cost, _fewest(problem)) / one.most
            if one.most
            else 0.0
            for one in limits
        )
        raise ValueError(
            f'mixed_precision.budget={dict(config.budget)}: no choice of '
            f'{list(config.candidates)} keeps it (the fewest bits take '
            f'{least:.2f} of it): raise it, or add candidates'
        )
    best = solve(problem, Task(limits=limits))
    assert best is not None
    low = cost_of(problem, axis, cheapest.choice)
    high = cost_of(problem, axis, best.choice)
    points = [point_of(problem, axis, cheapest)]
    for number in range(1, NUM_LEVELS):
        most = low + (high - low) * number / NUM_LEVELS
        level = Limit(cost=axis, most=most)
        found = solve(problem, Task(limits=[*limits, level]))
        if found is not None:
            points.append(point_of(problem, axis, found))
    points.append(point_of(problem, axis, best))
    return Front(
        problem=problem,
        axis=axis,
        limits=limits,
        points=_undominated(points),
        others=list(_others(problem, axis, limits)),
    )


def point_of(problem: Problem, axis: Cost, solution: Solution) -> FrontPoint:
    """Return a solution as a point of the front."""
    return FrontPoint(
        cost=cost_of(problem, axis, solution.choice),
        loss=solution.loss,
        choice=solution.choice,
        origin=solution.solver,
        gap=solution.gap,
    )


def _undominated(points: Sequence[FrontPoint]) -> list[FrontPoint]:
    """Sort by cost; keep what lowers the loss."""
    kept: list[FrontPoint] = []
    for point in sorted(points, key=lambda p: (p.cost, p.loss)):
        if not kept or point.loss < kept[-1].loss:
            kept.append(point)
    return kept


def _others(
    problem: Problem, axis: Cost, limits: Sequence[Limit]
) -> Iterator[FrontPoint]:
    """Yield the recipe's choice, and other uniform ones within the budgets."""
    candidates = {b for unit in problem.units.values() for b in unit.losses}
    named: dict[str, Choice] = {'recipe': problem.named()}
    for bits in sorted(candidates, key=width):
        named[f'uniform {bits}'] = uniform_choice(problem, bits)
    for name, choice in named.items():
        known = choice == named['recipe']
        if name == 'recipe' or (
            not known and fits(problem, Task(limits=limits), choice)
        ):
            yield FrontPoint(
                cost=cost_of(problem, axis, choice),
                loss=problem.loss(choice),
                choice=choice,
                origin=name,
            )


def _fewest(problem: Problem) -> dict[tuple[str, str], Bits]:
    return {
        key: next(b for b in unit.candidates if b != FLOAT)
        for key, unit in problem.units.items()
    }
