"""The exact solver: a mixed-integer linear program for scipy.

A multiple-choice knapsack, one candidate of each unit. The cost of a product
depends on both its operands; pairs of candidates are variables of their own
whose sums are those of the operands, which keeps the program linear.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from taskptq.analysis.mixed_precision.cost import Cost, Joint, Problem
from taskptq.analysis.mixed_precision.limits import Solution, Task
from taskptq.analysis.mixed_precision.units import FLOAT, Bits, Key

__all__ = ['best_exact', 'is_available']

# The gap at which the search stops, and its time in seconds.
GAP = 1e-4
SECONDS = 20.0
Row = np.ndarray[Any, Any]


def is_available() -> bool:
    """Whether scipy is installed."""
    try:
        import scipy.optimize  # noqa: F401
    except ImportError:
        return False
    return True


def best_exact(problem: Problem, task: Task) -> Solution | None:
    """Return the best choice with its proven gap; None if there is none."""
    from scipy.optimize import Bounds, milp

    program = _Program(problem)
    integral = np.zeros(program.size)
    integral[: len(program.columns)] = 1
    found = milp(
        program.losses()
        if task.least is None
        else _scaled(program.costs(task.least))[0],
        constraints=_constraints(program, task),
        integrality=integral,
        bounds=Bounds(0, 1),
        options={'mip_rel_gap': GAP, 'time_limit': SECONDS},
    )
    if found.x is None:
        return None
    choice = program.read(found.x)
    return Solution(
        choice=choice,
        loss=problem.loss(choice),
        solver='milp',
        gap=float(found.mip_gap or 0.0),
    )


def _constraints(program: _Program, task: Task) -> list[Any]:
    from scipy.optimize import LinearConstraint

    matrix, sides = program.equations()
    constraints = [LinearConstraint(matrix, sides, sides)]
    for limit in task.limits:
        row, size = _scaled(program.costs(limit.cost))
        constraints.append(
            LinearConstraint(row, -np.inf, limit.with_slack / size)
        )
    if task.max_loss is not None:
        most = task.max_loss / program.loss_scale
        constraints.append(LinearConstraint(program.losses(), -np.inf, most))
    return constraints


def _scaled(row: Row) -> tuple[Row, float]:
    """Bring a row near 1, since the solver's tolerances are absolute."""
    size = max(float(np.abs(row).max(initial=0.0)), 1e-300)
    return row / size, size


class _Program:
    """Columns and equations of a problem.

    The first columns are candidates, the others pairs of candidates.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.columns: list[tuple[Key, Bits]] = [
            (key, bits)
            for key, unit in problem.units.items()
            for bits in unit.candidates
        ]
        self.index = {column: i for i, column in enumerate(self.columns)}
        self.pairs: list[tuple[int, tuple[Bits, Bits]]] = [
            (number, bits)
            for number, joint in enumerate(problem.joints)
            for bits in self._combinations(joint)
        ]
        named = problem.loss(problem.named())
        self.loss_scale = named if named > 0 else 1.0

    @property
    def size(self) -> int:
        """Number of columns."""
        return len(self.columns) + len(self.pairs)

    def losses(self) -> Row:
        """Return the loss of each column, relative to the recipe's."""
        row = np.zeros(self.size)
        for i, (key, bits) in enumerate(self.columns):
            row[i] = self.problem.units[key].losses[bits] / self.loss_scale
        return row

    def costs(self, cost: Cost) -> Row:
        """Return the cost of each column."""
        row = np.zeros(self.size)
        for i, (key, bits) in enumerate(self.columns):
            unit = self.problem.units[key]
            row[i] = cost.of_unit(self.problem, unit, bits)
        for i, (number, bits_of_pair) in self._numbered_pairs():
            joint = self.problem.joints[number]
            row[i] = cost.of_product(self.problem, joint, *bits_of_pair)
        return row

    def equations(self) -> tuple[Any, Row]:
        """Return the matrix and its right side.

        Candidates of a unit add up to 1. Pairs with one candidate on a side
        add up to that candidate. Both units of a float layer are float.
        """
        from scipy.sparse import lil_matrix

        rows = [
            ({self.index[key, bits]: 1.0 for bits in unit.candidates}, 1.0)
            for key, unit in self.problem.units.items()
        ]
        rows += [(row, 0.0) for row in self._sums().values()]
        rows += [(row, 1.0) for row in self._constants()]
        rows += [
            ({self.index[a, FLOAT]: 1.0, self.index[b, FLOAT]: -1.0}, 0.0)
            for a, b in self.problem.pairs
        ]
        matrix = lil_matrix((len(rows), self.size))
        for i, (row, _) in enumerate(rows):
            for column, value in row.items():
                matrix[i, column] = value
        return matrix.tocsr(), np.array([side for _, side in rows])

    def read(self, values: Row) -> dict[Key, Bits]:
        """Return the choice that the values of a solution mean."""
        return {
            key: max(
                unit.candidates,
                key=lambda bits: float(values[self.index[key, bits]]),
            )
            for key, unit in self.problem.units.items()
        }

    def _combinations(self, joint: Joint) -> Iterator[tuple[Bits, Bits]]:
        for first in self._candidates(joint.first):
            for second in self._candidates(joint.second):
                same = joint.first is not None and joint.first == joint.second
                if not same or first == second:
                    yield first, second

    def _candidates(self, key: Key | None) -> tuple[Bits, ...]:
        return (FLOAT,) if key is None else self.problem.units[key].candidates

    def _numbered_pairs(
        self,
    ) -> Iterator[tuple[int, tuple[int, tuple[Bits, Bits]]]]:
        return enumerate(self.pairs, len(self.columns))

    def _sums(self) -> dict[tuple[int, int, Bits], dict[int, float]]:
        sums: dict[tuple[int, int, Bits], dict[int, float]] = {}
        for i, (number, bits) in self._numbered_pairs():
            joint = self.problem.joints[number]
            for side, key in enumerate((joint.first, joint.second)):
                if key is None:
                    continue
                row = sums.setdefault(
                    (number, side, bits[side]),
                    {self.index[key, bits[side]]: -1.0},
                )
                row[i] = 1.0
        return sums

    def _constants(self) -> Iterator[dict[int, float]]:
        """Products of two float operands have one pair, which is taken."""
        for i, (number, _) in self._numbered_pairs():
            joint = self.problem.joints[number]
            if joint.first is None and joint.second is None:
                yield {i: 1.0}
