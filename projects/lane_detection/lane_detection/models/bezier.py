"""Cubic Bezier curves: sampling, fitting, cutting."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ['bernstein', 'cut_to_image', 'fit_cubic', 'sample_cubic']


def bernstein(t: Tensor) -> Tensor:
    """Return the cubic Bernstein polynomials at t, (n,) -> (n, 4)."""
    s = 1 - t
    return torch.stack([s**3, 3 * t * s**2, 3 * t**2 * s, t**3], dim=-1)


def sample_cubic(control: Tensor, *, num_samples: int) -> Tensor:
    """Return points of curves at equally spaced parameters.

    Args:
        control: (..., 4, 2).
        num_samples: n.

    Returns:
        (..., n, 2), the first at t = 0, the last at t = 1.
    """
    t = torch.linspace(
        0, 1, num_samples, dtype=control.dtype, device=control.device
    )
    return bernstein(t) @ control


def fit_cubic(points: NDArray[np.floating]) -> Tensor:
    """Fit a curve to a polyline by least squares.

    The parameter of a point is its chord length from the first, over the whole
    length.

    Args:
        points: (n, 2), n >= 2, of a length above zero. With fewer than four,
            which would leave the curve open, the polyline is refined.

    Returns:
        Control points, (4, 2), double.

    Raises:
        ValueError: If the polyline is too short.
    """
    points = np.asarray(points, dtype=np.float64)
    steps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    if not steps.sum() > 0:
        raise ValueError(
            f'a polyline of {len(points)} points and no length: leave it out'
        )
    t = np.concatenate([[0.0], np.cumsum(steps)]) / steps.sum()
    if len(points) < 4:
        refined = np.linspace(0, 1, 4)
        points = np.stack(
            [np.interp(refined, t, points[:, i]) for i in (0, 1)], axis=-1
        )
        t = refined
    basis = bernstein(torch.from_numpy(t))
    return torch.linalg.pinv(basis) @ torch.from_numpy(points)


def cut_to_image(control: Tensor, *, num_samples: int = 100) -> Tensor | None:
    """Cut a curve to the piece inside the unit square.

    Args:
        control: (4, 2), normalized by the size of the image.
        num_samples: Samples along the curve; the piece reaches from the
            first to the last sample inside.

    Returns:
        Control points of the piece, (4, 2); None if fewer than two samples
        are inside.
    """
    samples = sample_cubic(control, num_samples=num_samples)
    inside = ((samples > 0) & (samples < 1)).all(-1).nonzero()[:, 0]
    if len(inside) < 2:
        return None
    ends = inside[[0, -1]].to(control) / (num_samples - 1)
    start, end = float(ends[0]), float(ends[1])
    return torch.stack(
        [
            _blossom(control, *arguments)
            for arguments in (
                (start, start, start),
                (start, start, end),
                (start, end, end),
                (end, end, end),
            )
        ]
    )


def _blossom(control: Tensor, *arguments: float) -> Tensor:
    """De Casteljau's scheme with its own parameter at each level, (2,).

    The control points of the piece [a, b] are the blossoms of (a, a, a),
    (a, a, b), (a, b, b) and (b, b, b).
    """
    for t in arguments:
        control = (1 - t) * control[:-1] + t * control[1:]
    return control[0]
