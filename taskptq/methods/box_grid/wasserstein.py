"""Normalized Wasserstein similarity of boxes, for tiny objects.

A box is modelled as a Gaussian N((cx, cy), diag(w^2 / 4, h^2 / 4)). The
squared 2-Wasserstein distance of two of them is
dcx^2 + dcy^2 + (dw^2 + dh^2) / 4, and NWD = exp(-W_2 / C) (Wang et al.,
arXiv 2110.13389). Unlike IoU it falls smoothly with a shift, however small
the boxes, and keeps falling when they no longer overlap.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ['wasserstein_similarity']


def wasserstein_similarity(
    boxes_a: Tensor,
    boxes_b: Tensor,
    *,
    constant: float = 12.8,
    aligned: bool = False,
) -> Tensor:
    """Return exp(-W_2 / constant) of boxes.

    Its gradient is 0, not undefined, for equal boxes.

    Args:
        boxes_a: (M, 4) of x1, y1, x2, y2 in pixels.
        boxes_b: (N, 4) of x1, y1, x2, y2 in pixels.
        constant: C in pixels; 12.8 is the mean object size of AI-TOD.
        aligned: Compare boxes row by row only; M = N.

    Returns:
        (M, N), or (M,) if aligned; in (0, 1], at least float32.

    Raises:
        ValueError: If the constant is not positive, or aligned boxes differ
            in number.
    """
    if not constant > 0:
        raise ValueError(
            f'constant={constant}: give a positive number of pixels'
        )
    one, two = _gaussians(boxes_a), _gaussians(boxes_b)
    if not aligned:
        # By differences: the product form rounds off small distances.
        distance = torch.cdist(
            one, two, compute_mode='donot_use_mm_for_euclid_dist'
        )
        return torch.exp(-distance / constant)
    if one.shape != two.shape:
        raise ValueError(
            f'aligned=True with {len(one)} and {len(two)} boxes: pass the '
            'same number of both'
        )
    distance = torch.linalg.vector_norm(one - two, dim=-1)
    return torch.exp(-distance / constant)


def _gaussians(boxes: Tensor) -> Tensor:
    """Turn (N, 4) corners into (N, 4) centers and standard deviations."""
    wide = boxes if boxes.dtype == torch.float64 else boxes.float()
    low, high = wide[..., :2], wide[..., 2:4]
    return torch.cat([(low + high) / 2, (high - low) / 2], dim=-1)
