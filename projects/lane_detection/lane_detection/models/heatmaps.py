"""Key-point heat maps: targets and the loss of CornerNet."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = ['draw_gaussian', 'keypoint_focal_loss']


def draw_gaussian(
    heatmap: NDArray[np.float32], *, x: int, y: int, radius: int
) -> None:
    """Paint a Gaussian into a heat map, in place, keeping the larger value.

    Its sigma is a sixth of the diameter ``2 radius + 1``; the centre is 1.

    Args:
        heatmap: (H, W), in [0, 1].
        x: Column of the centre, inside the map.
        y: Row of the centre.
        radius: Radius in cells.
    """
    height, width = heatmap.shape
    top, bottom = max(y - radius, 0), min(y + radius + 1, height)
    left, right = max(x - radius, 0), min(x + radius + 1, width)
    sigma = (2 * radius + 1) / 6
    dy = np.arange(top, bottom, dtype=np.float32)[:, None] - y
    dx = np.arange(left, right, dtype=np.float32) - x
    patch: Any = np.exp(-(dx**2 + dy**2) / (2 * sigma**2))
    area = heatmap[top:bottom, left:right]
    np.maximum(area, patch.astype(np.float32), out=area)


def keypoint_focal_loss(
    logits: Tensor, target: Tensor, *, min_positives: int = 0
) -> Tensor:
    """Return CornerNet's focal loss of a heat map (arXiv 1808.01244, eq. 1).

    -(1 - p)^2 log p where the target is 1, -(1 - t)^4 p^2 log(1 - p)
    elsewhere; the sum, over the number of ones.

    Args:
        logits: Any shape, before the sigmoid.
        target: Same shape, in [0, 1].
        min_positives: With fewer ones in the batch the loss is 0.
    """
    p = logits.sigmoid().clamp(1e-4, 1 - 1e-4)
    positive = target.eq(1)
    num_positives = int(positive.sum())
    at_ones = (1 - p) ** 2 * p.log()
    elsewhere = (1 - target) ** 4 * p**2 * (1 - p).log()
    loss = -at_ones.where(positive, elsewhere).sum()
    if num_positives < min_positives:
        return loss * 0
    return loss / max(num_positives, 1)
