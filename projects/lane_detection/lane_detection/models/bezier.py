"""Cubic Bezier curves: sampling, fitting, cutting."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    'bernstein',
    'cubic_rows',
    'cut_to_image',
    'fit_cubic',
    'sample_cubic',
]

# Least |dy / dt| that a row's parameter is read from.
LEAST_SLOPE = 1e-2


def bernstein(t: Tensor) -> Tensor:
    """Return the cubic Bernstein polynomials at t, (...) -> (..., 4)."""
    s = 1 - t
    return torch.stack([s**3, 3 * t * s**2, 3 * t**2 * s, t**3], dim=-1)


def quadratic(t: Tensor) -> Tensor:
    """Return the quadratic Bernstein polynomials at t, (...) -> (..., 3)."""
    s = 1 - t
    return torch.stack([s**2, 2 * t * s, t**2], dim=-1)


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


def cubic_rows(
    control: Tensor, *, num_rows: int, num_samples: int = 50
) -> Tensor:
    """Return x of curves at fixed rows, with a gradient.

    The parameter of a row is that of the nearest sample and one step of
    Newton's method, which also yields the derivative of the exact solution.
    Beyond its ends a curve goes on vertically.

    Args:
        control: Control points, (..., 4, 2), in fractions of the image.
        num_rows: Rows from the top to the bottom of the image, R.
        num_samples: Samples along a curve.

    Returns:
        (..., R), cut off one width to the left and to the right of the image.
    """
    rows = torch.linspace(0, 1, num_rows).to(control)
    with torch.no_grad():
        heights = sample_cubic(control, num_samples=num_samples)[..., 1]
        gaps = (heights[..., None, :] - rows[:, None]).abs()
        t = gaps.argmin(dim=-1).to(control) / (num_samples - 1)  # ... x R
    legs = 3 * control.diff(dim=-2)  # of the derivative
    x, y = (bernstein(t) @ control).unbind(dim=-1)
    dx, dy = (quadratic(t) @ legs).unbind(dim=-1)
    steep = torch.where(dy < 0, -LEAST_SLOPE, LEAST_SLOPE).to(dy)
    dy = torch.where(dy.abs() < LEAST_SLOPE, steep, dy).detach()
    step = (rows - y) / dy
    most = 1 / (num_samples - 1)
    step = step.clamp(-most, most)
    step = step.maximum(-t).minimum(1 - t)
    return (x + dx * step).clamp(-1, 2)


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
