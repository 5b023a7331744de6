"""Grids of a few levels: what their levels are made of, and their fit.

The levels of an output channel are a fixed linear function of one or two
coefficients, ``L = B p``: all grids below 3 bits in the literature are. So
one closed form finds the coefficients of any of them, and a new grid is a
subclass with its ``basis``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

# Least size of a coefficient that has to be positive.
LEAST = 1e-12
ROUNDS = 20

LEVELS: dict[str, type[Levels]] = {}


class Levels:
    """One kind of grid. Subclasses are known by their name from then on.

    Attributes:
        name: Name in qconfigs.
        suffix: Name in recipes, as in ``w2a4_planes``; empty for none.
        bits_name: What recipes write for its bits, e.g. '1.6'.
        basis: Each level's share of each coefficient, K rows of P.
    """

    name: ClassVar[str] = ''
    suffix: ClassVar[str] = ''
    bits_name: ClassVar[str] = ''
    basis: ClassVar[tuple[tuple[float, ...], ...]] = ()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.name:
            LEVELS[cls.name] = cls

    @property
    def num_levels(self) -> int:
        """Number of levels, K."""
        return len(self.basis)

    @property
    def num_coefficients(self) -> int:
        """Number of coefficients, P."""
        return len(self.basis[0])

    @property
    def num_bits(self) -> int:
        """Bits of a code."""
        return (self.num_levels - 1).bit_length()

    @property
    def has_zero(self) -> bool:
        """Whether 0 is a level whatever the coefficients are."""
        return any(not any(row) for row in self.basis)

    def starts(self, rows: Tensor) -> list[Tensor]:
        """Return coefficients to start a fit from, each (C, P).

        Args:
            rows: Weights, (C, N).
        """
        raise NotImplementedError

    def repaired(self, coefficients: Tensor) -> Tensor:
        """Return the nearest valid coefficients, (..., P)."""
        return coefficients.abs().clamp(min=LEAST)

    def faults(self, coefficients: Tensor) -> Iterator[str]:
        """Yield what is wrong with coefficients, (C, P)."""
        if not bool((coefficients > 0).all()):
            yield f'{self.name} levels that are not positive'

    def integers(self) -> tuple[tuple[int, ...], float] | None:
        """Return each level as an integer, and their unit, or None.

        The unit is a share of the first coefficient: a runtime computes
        ``integer * unit * coefficient``.
        """
        return None

    def matrix(self, like: Tensor) -> Tensor:
        """Return the basis as a tensor, (K, P)."""
        return torch.tensor(self.basis, dtype=like.dtype, device=like.device)

    def ordered(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """Return levels (..., K), ascending, and each one's row of the basis.

        Products with small powers of two and one sum: the same bits on every
        machine.
        """
        terms = coefficients[..., None, :] * self.matrix(coefficients)
        levels = terms[..., 0]
        for i in range(1, self.num_coefficients):
            levels = levels + terms[..., i]
        found = levels.sort(dim=-1, stable=True)
        if torch.onnx.is_in_onnx_export():
            # Constants of the trace: sorting has no form in ONNX.
            values = torch.tensor(found.values.tolist(), dtype=levels.dtype)
            return values, torch.tensor(found.indices.tolist())
        return found.values, found.indices


def as_rows(x: Tensor, *, ch_axis: int | None) -> Tensor:
    """Return a tensor as (C, N), a channel a row, or (1, N)."""
    if ch_axis is None:
        return x.reshape(1, -1)
    return x.transpose(0, ch_axis).flatten(1)


def from_rows(rows: Tensor, *, like: Tensor, ch_axis: int | None) -> Tensor:
    """Undo :func:`as_rows` for a tensor shaped like another."""
    if ch_axis is None:
        return rows.reshape(like.shape)
    sizes = like.transpose(0, ch_axis).shape
    return rows.reshape(sizes).transpose(0, ch_axis)


def thresholds(levels: Tensor) -> Tensor:
    """Return the midpoints of neighbouring levels, (..., K - 1)."""
    return (levels[..., :-1] + levels[..., 1:]) / 2


def nearest_level(rows: Tensor, levels: Tensor) -> Tensor:
    """Return the index of the nearest level; ties go up.

    >>> nearest_level(torch.tensor([[-0.6, 0.4, 0.5]]),
    ...               torch.tensor([[-1.0, 0.0, 1.0]]))
    tensor([[0, 1, 2]])

    Args:
        rows: (..., N).
        levels: (..., K), ascending.

    Returns:
        int64, shaped like ``rows``.
    """
    codes = torch.zeros_like(rows, dtype=torch.int64)
    middles = thresholds(levels)
    for i in range(middles.shape[-1]):
        codes += rows >= middles[..., i : i + 1]
    return codes


def solve(
    kind: Levels,
    order: Tensor,
    normal: Tensor,
    right: Tensor,
    *,
    before: Tensor,
) -> Tensor:
    """Return the coefficients that fit weights with these codes best.

    Minimizes ``(w - S L)^T H (w - S L)`` over the coefficients of L, with S
    the codes as zeros and ones: normal equations of P unknowns.

    Args:
        kind: Kind of grid.
        order: Row of the basis of each level, (..., K).
        normal: ``S^T H S``, (..., K, K).
        right: ``S^T H w``, (..., K).
        before: Coefficients so far; what no weight has a say in stays.

    Returns:
        (..., P), valid.
    """
    basis = kind.matrix(normal)[order]
    before = before.to(normal)
    left = basis.mT @ normal @ basis
    goal = (basis.mT @ right[..., None])[..., 0]
    size = left.diagonal(dim1=-2, dim2=-1).sum(dim=-1).clamp(min=LEAST)
    ridge = (1e-9 * size)[..., None]
    left = left + torch.diag_embed(ridge.expand_as(before))
    found = torch.linalg.solve(left, goal + ridge * before)
    return kind.repaired(found)


def fit(
    kind: Levels, rows: Tensor, *, weights: Tensor | None = None
) -> Tensor:
    """Return the coefficients of least squared error, (C, P), float32.

    Alternates nearest levels and least squares (Lloyd's algorithm on a
    linear family), from each start; no step raises the error.

    Args:
        kind: Kind of grid.
        rows: (C, N).
        weights: How much each value counts, (C, N); None is the same.
    """
    rows = rows.double()
    weights = torch.ones_like(rows) if weights is None else weights.double()
    best = least = None
    for start in kind.starts(rows):
        found = kind.repaired(start.double())
        for _ in range(ROUNDS):
            levels, order = kind.ordered(found)
            member = torch.nn.functional.one_hot(
                nearest_level(rows, levels), kind.num_levels
            ).to(rows)
            counts = (member * weights[..., None]).sum(dim=1)
            sums = (member * (weights * rows)[..., None]).sum(dim=1)
            found = solve(
                kind, order, torch.diag_embed(counts), sums, before=found
            )
        levels, _ = kind.ordered(found)
        error = rows - levels.gather(1, nearest_level(rows, levels))
        error = (weights * error.square()).sum(dim=1, keepdim=True)
        if best is None or least is None:
            best, least = found, error
        else:
            best = torch.where(error < least, found, best)
            least = torch.minimum(error, least)
    assert best is not None
    return kind.repaired(best.float())
