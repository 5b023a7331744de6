"""Group GANet's key points into lanes."""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from torch import Tensor

__all__ = [
    'cluster_starts',
    'group_points',
    'horizontal_peaks',
    'lane_of_points',
]


def horizontal_peaks(scores: Tensor) -> Tensor:
    """Set cells to zero that are smaller than a horizontal neighbor.

    Args:
        scores: (B, 1, H, W), not negative.
    """
    highest = F.max_pool2d(scores, (1, 3), stride=1, padding=(0, 1))
    return scores * (highest == scores)


def group_points(
    cells: NDArray[np.int64], votes: NDArray[np.float32], *, radius: float
) -> list[NDArray[np.int64]]:
    """Group points that vote for the same start.

    A point less than one row above its own vote is a start. Each point joins
    the first cluster of starts whose center is near its vote.

    Args:
        cells: Column and row of each point, (n, 2).
        votes: Predicted start of each point's lane, x and y in cells, (n, 2).
        radius: Radius of clusters and votes, in cells.

    Returns:
        Indices of the points of each group; no group is empty.
    """
    starts = np.flatnonzero(votes[:, 1] - cells[:, 1] < 1)
    if len(starts) == 0:
        return []
    centres = cluster_starts(cells[starts], radius=radius)
    near = cdist(votes, centres) <= radius
    first = np.where(near.any(axis=1), near.argmax(axis=1), -1)
    groups = [np.flatnonzero(first == i) for i in range(len(centres))]
    return [group for group in groups if len(group)]


def cluster_starts(
    cells: NDArray[np.int64], *, radius: float
) -> NDArray[np.int64]:
    """Cluster starts greedily, in their order.

    Each joins the first cluster that has a member within the radius, or opens
    a new one.

    Args:
        cells: Column and row of each start, (n, 2), n >= 1.
        radius: Radius in cells.

    Returns:
        Centre of each cluster, truncated to integers, (k, 2).
    """
    near = cdist(cells, cells) <= radius
    labels = np.zeros(len(cells), dtype=np.int64)
    count = 0
    for i in range(len(cells)):
        neighbours = labels[:i][near[i, :i]]
        if len(neighbours):
            labels[i] = neighbours.min()
        else:
            labels[i] = count
            count += 1
    sizes = np.bincount(labels)
    sums = [np.bincount(labels, weights=cells[:, axis]) for axis in (0, 1)]
    return (np.stack(sums, axis=-1) / sizes[:, None]).astype(np.int64)


def lane_of_points(
    points: NDArray[np.float32], *, rows: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return a polyline from the bottom upwards: the mean of each row.

    Args:
        points: x and y in cells, (n, 2).
        rows: Row of the cell of each point, (n,).
    """
    _, inverse = np.unique(-rows, return_inverse=True)
    sizes = np.bincount(inverse)
    means = [
        np.bincount(inverse, weights=points[:, axis]) / sizes
        for axis in (0, 1)
    ]
    return np.stack(means, axis=-1).astype(np.float32)
