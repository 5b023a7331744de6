"""Lane distortion score: the distance between two sets of lanes.

Selective Focus (Fan et al., AAAI 2024) names a Lane Distortion Score that
measures the effect of errors in a lane detector's outputs after decoding, by
a distance between lane points and a penalty for points without a partner. The
formula here is our reconstruction, as the parts of the paper that we could
read don't give one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    'LaneDistortion',
    'lane_disagreement',
    'lane_distortion',
    'lane_distortion_score',
    'min_cost_assignment',
    'sample_lanes',
]

# Weight of the distortion in the matching cost: so small that it only breaks
# ties between matchings of equal distance.
TIE_WEIGHT = 1e-9


@dataclass(frozen=True)
class LaneDistortion:
    """Difference between two sets of lanes.

    Attributes:
        total: Sum of the distances and penalties, pixels x rows.
        rows: Number of rows summed over.
        distance: Part of ``total`` from rows that both lanes of a pair have.
        common_rows: Number of rows in ``distance``.
        pairs: Indices of matched lanes, (first, second).
        num_lanes: Lanes with at least one row in the first and second set.
    """

    total: float
    rows: int
    distance: float
    common_rows: int
    pairs: tuple[tuple[int, int], ...]
    num_lanes: tuple[int, int]

    @property
    def score(self) -> float:
        """Mean over rows, in pixels: 0 if identical, gamma without a match."""
        return self.total / max(1, self.rows)


def lane_distortion_score(
    a: Any,
    b: Any,
    *,
    rows: Any = None,
    gamma: float = 30.0,
    tau: float = 30.0,
) -> float:
    """Return the lane distortion score of two sets of lanes, in [0, gamma].

    See :func:`lane_distortion` for arguments and formula. The score is
    symmetric in ``a`` and ``b``; two empty sets have score 0.

    >>> straight = np.array([[400.0, 590.0], [600.0, 290.0]])
    >>> rows = range(300, 590, 10)
    >>> lane_distortion_score([straight], [straight + [5, 0]], rows=rows)
    5.0
    """
    return lane_distortion(a, b, rows=rows, gamma=gamma, tau=tau).score


def lane_distortion(
    a: Any,
    b: Any,
    *,
    rows: Any = None,
    gamma: float = 30.0,
    tau: float = 30.0,
) -> LaneDistortion:
    """Match two sets of lanes and sum their differences.

    The cost of a pair is the mean distance in x over the rows that both have
    (infinite without any). The assignment of least cost is used (Hungarian),
    and its pairs match if their cost is below tau. Then, in our
    reconstruction of the score::

        total = sum over pairs of
                    sum over common rows of min(|x_a - x_b|, gamma)
                    + gamma * rows that only one of the two has
                + sum over the other lanes of gamma * rows
        rows  = sum over pairs of rows that either has
                + sum over the other lanes of rows

    Args:
        a: Lanes in pixels of the original image: x at common rows, (L, R),
            as an array or tensor with NaN where a lane is absent, or a list
            of polylines, (n, 2) of x and y each.
        b: Lanes of the other set, in either form.
        rows: y of the common rows, (R,); required for polylines.
        gamma: Penalty of a row without partner and highest cost of any row,
            in pixels.
        tau: Mean distance from which lanes don't match, in pixels.

    Raises:
        ValueError: If gamma or tau is not positive, the two sets have
            different rows, or polylines come without rows.
    """
    for name, value in (('gamma', gamma), ('tau', tau)):
        if not value > 0:
            raise ValueError(
                f'{name}={value}: give a positive number of pixels'
            )
    first, second = at_rows(a, rows), at_rows(b, rows)
    if first.shape[1] != second.shape[1]:
        raise ValueError(
            f'lanes at {first.shape[1]} and at {second.shape[1]} rows cannot '
            'be compared: sample both sets at the same rows'
        )
    first = first[np.isfinite(first).any(axis=1)]
    second = second[np.isfinite(second).any(axis=1)]
    return matched_distortion(first, second, gamma=gamma, tau=tau)


def lane_disagreement(
    a: Sequence[Any], b: Sequence[Any], *, rows: Any, width: float
) -> float:
    """Return which share of two sets of lanes disagrees, in [0, 1].

    Lanes match as in :func:`lane_distortion`. Each row of a pair counts
    ``min(|x_a - x_b| / width, 1)^2``, and 1 where only one lane is there; the
    result is the mean over rows. Distances are squared since they add to a
    lane's own error from the truth that way, if they go to either side.

    >>> line = np.array([[400.0, 590.0], [600.0, 290.0]])
    >>> rows = range(300, 590, 10)
    >>> lane_disagreement([line], [line + [3, 0]], rows=rows, width=30)
    0.01

    Args:
        a: Polylines, (n, 2) each.
        b: Polylines of the other set.
        rows: y of the rows to compare, (R,).
        width: Distance in pixels that makes two lanes different.
    """
    first, second = sample_lanes(a, rows), sample_lanes(b, rows)
    first = first[np.isfinite(first).any(axis=1)]
    second = second[np.isfinite(second).any(axis=1)]
    found = matched_distortion(first, second, gamma=width, tau=width)
    total = float(found.rows - found.common_rows)
    for one, other in found.pairs:
        gaps = np.abs(first[one] - second[other])
        gaps = gaps[np.isfinite(gaps)] / width
        total += float((np.minimum(gaps, 1) ** 2).sum())
    return round(total / max(1, found.rows), 12)


def matched_distortion(
    first: NDArray[Any], second: NDArray[Any], *, gamma: float, tau: float
) -> LaneDistortion:
    """Compute :func:`lane_distortion` for non-empty lanes (L, R)."""
    there, here = np.isfinite(first), np.isfinite(second)  # La x R, Lb x R
    both = there[:, None] & here[None]  # La x Lb x R
    gaps = np.zeros(both.shape)
    np.subtract(first[:, None], second[None], out=gaps, where=both)
    gaps = np.abs(gaps)
    common = both.sum(axis=2)  # La x Lb
    cost = np.where(
        common > 0, gaps.sum(axis=2) / np.maximum(common, 1), np.inf
    )
    distance = np.minimum(gaps, gamma).sum(axis=2)
    lengths, others = there.sum(axis=1), here.sum(axis=1)
    either = lengths[:, None] + others[None] - common
    apart = gamma * (lengths[:, None] + others[None])
    together = distance + gamma * (either - common)

    accepted = cost < tau
    worst = cost[np.isfinite(cost)].max(initial=0.0)
    # Large enough that one pair without common rows outweighs all others.
    finite = np.where(common > 0, cost, (worst + 1.0) * (min(cost.shape) + 1))
    tie = TIE_WEIGHT * np.where(accepted, together, apart)
    pairs = tuple(
        (int(i), int(j))
        for i, j in zip(*min_cost_assignment(finite + tie), strict=True)
        if accepted[i, j]
    )
    shared = sum(int(common[pair]) for pair in pairs)
    num_rows = int(lengths.sum() + others.sum())
    paired_rows = sum(int(lengths[i] + others[j]) for i, j in pairs)
    return LaneDistortion(
        total=float(
            sum(together[pair] for pair in pairs)
            + gamma * (num_rows - paired_rows)
        ),
        rows=num_rows - shared,
        distance=float(sum(distance[pair] for pair in pairs)),
        common_rows=shared,
        pairs=pairs,
        num_lanes=(len(first), len(second)),
    )


def at_rows(lanes: Any, rows: Any) -> NDArray[Any]:
    """Return lanes of either form as x at rows, (L, R)."""
    if isinstance(lanes, (np.ndarray, Tensor)) and lanes.ndim == 2:
        array = as_array(lanes)
        if rows is not None and array.shape[1] != len(rows):
            raise ValueError(
                f'lanes of shape {array.shape} do not match the {len(rows)} '
                'rows: give one column per row, or polylines as a list'
            )
        return array
    if rows is None:
        raise ValueError(
            'rows=None: polylines can only be compared at '
            'common rows: give their y'
        )
    return sample_lanes(lanes, rows)


def sample_lanes(lanes: Sequence[Any], rows: Any) -> NDArray[Any]:
    """Return the x of polylines at rows.

    A lane is absent above its highest and below its lowest point. Points that
    aren't finite are ignored; the order of the points does not matter.

    Args:
        lanes: Polylines, (n, 2) each, x and y; arrays or tensors.
        rows: y of the rows, (R,).

    Returns:
        (L, R), float64, NaN where a lane is absent.

    Raises:
        ValueError: If a lane isn't (n, 2).
    """
    at = as_array(rows).reshape(-1)
    sampled = np.full((len(lanes), len(at)), np.nan)
    for number, lane in enumerate(lanes):
        points = as_array(lane)
        if points.size == 0:
            continue
        if points.ndim != 2 or points.shape[1] != 2:
            raise ValueError(
                f'lane {number} has shape {points.shape}: give '
                'polylines (n, 2), x and y'
            )
        points = points[np.isfinite(points).all(axis=1)]
        if len(points) == 0:
            continue
        points = points[np.argsort(points[:, 1], kind='stable')]
        sampled[number] = np.interp(
            at, points[:, 1], points[:, 0], left=np.nan, right=np.nan
        )
    return sampled


def as_array(values: Any) -> NDArray[Any]:
    """Return values of any kind as a float64 array."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    return np.asarray(values, dtype=np.float64)


def min_cost_assignment(
    cost: NDArray[Any],
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the one-to-one assignment of least total cost.

    Shortest augmenting paths with prices of rows and columns (Kuhn, 1955;
    Jonker and Volgenant, 1987), exact, in O(n^2 m).

    Args:
        cost: (n, m), finite.

    Returns:
        Sorted row indices and their column indices, min(n, m) each.

    Raises:
        ValueError: If a cost is not finite.
    """
    if not np.isfinite(cost).all():
        raise ValueError(
            'cost contains NaN or infinity: replace it by a large number'
        )
    if cost.shape[0] > cost.shape[1]:
        columns, rows = min_cost_assignment(cost.T)
        order = np.argsort(rows)
        return rows[order], columns[order]
    num_rows, num_columns = cost.shape
    row_price, column_price = np.zeros(num_rows), np.zeros(num_columns)
    owner = np.full(num_columns, -1)  # row of each column, -1: free
    for row in range(num_rows):
        column, previous = cheapest_path(
            cost,
            row,
            owner=owner,
            row_price=row_price,
            column_price=column_price,
        )
        while column >= 0:
            before = previous[column]
            owner[column] = row if before < 0 else owner[before]
            column = before
    columns = np.flatnonzero(owner >= 0)
    order = np.argsort(owner[columns])
    return owner[columns][order], columns[order]


def cheapest_path(
    cost: NDArray[Any],
    row: int,
    *,
    owner: NDArray[Any],
    row_price: NDArray[Any],
    column_price: NDArray[Any],
) -> tuple[int, NDArray[Any]]:
    """Find the cheapest path from a row to a free column; update the prices.

    Returns:
        The free column, and each column's predecessor on its path (-1 for
        none).
    """
    distance = np.full(len(owner), np.inf)
    previous = np.full(len(owner), -1)
    done = np.zeros(len(owner), dtype=bool)
    current, column, length = row, -1, 0.0
    while True:
        through = length + (cost[current] - row_price[current] - column_price)
        better = ~done & (through < distance)
        distance[better] = through[better]
        previous[better] = column
        column = int(np.where(done, np.inf, distance).argmin())
        length = float(distance[column])
        if owner[column] < 0:
            break
        done[column] = True
        current = int(owner[column])
    row_price[row] += length
    row_price[owner[done]] += length - distance[done]
    column_price[done] -= length - distance[done]
    return column, previous
