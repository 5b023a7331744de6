"""Box coordinates as a distribution over the points of a grid.

A scalar T of box regression (dx, dy, dw, dh, or the distance to a side) is
predicted by n + 1 logits over ascending points y_0 < ... < y_n. They are
trained by cross-entropy against the two points around T and decoded as the
expectation T = sum_i p_i y_i. The gradient of a logit is p_i - p*_i, in
[-1, 1] whatever the size of the object (C-BBL / UGS, arXiv 2303.01803).

Everything after the logits is computed in float32 or wider: an error of a
quantized logit i reaches T only by p_i (y_i - T) (`expected_rms`), and
rounding p or T themselves would hide that.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from taskptq.hosts import register_float

__all__ = ['BoxGrid', 'nonuniform_grid', 'one_sided_grid', 'uniform_grid']


def uniform_grid(alpha: float, *, num_intervals: int) -> Tensor:
    """Return y_i = alpha (2 i - n) / n, (n + 1,).

    >>> uniform_grid(2.0, num_intervals=4)
    tensor([-2., -1.,  0.,  1.,  2.])

    Args:
        alpha: Largest magnitude, > 0, in the unit of the target.
        num_intervals: n, at least 1; an even n has a point at 0.

    Raises:
        ValueError: If a setting is out of range.
    """
    return nonuniform_grid(alpha, beta=0.0, num_intervals=num_intervals)


def nonuniform_grid(
    alpha: float, *, beta: float, num_intervals: int
) -> Tensor:
    """Return a symmetric grid that is dense around 0, (n + 1,).

    y = sign(u) alpha (e^(beta |u|) - 1) / (e^(alpha beta) - 1) for uniform
    points u in [-alpha, alpha] (UGS, interval non-uniform labels).

    Args:
        alpha: Largest magnitude, > 0, in the unit of the target.
        beta: Density around 0, at least 0; 0 is the uniform grid.
        num_intervals: n, at least 1; an even n has a point at 0.

    Raises:
        ValueError: If a setting is out of range, or if two points coincide.
    """
    _check_num_intervals(num_intervals)
    steps = torch.arange(num_intervals + 1, dtype=torch.float64)
    # Symmetric indices make the grid antisymmetric to the last bit.
    uniform = (2 * steps - num_intervals) / num_intervals
    return _warp(uniform, alpha=alpha, beta=beta)


def one_sided_grid(alpha: float, *, beta: float, num_intervals: int) -> Tensor:
    """Return a grid over [0, alpha], dense around 0, (n + 1,).

    The non-negative half of :func:`nonuniform_grid`'s formula, for distances
    to the sides of a box.

    Args:
        alpha: Largest value, > 0, in the unit of the target.
        beta: Density around 0, at least 0; 0 is evenly spaced.
        num_intervals: n, at least 1.

    Raises:
        ValueError: If a setting is out of range, or if two points coincide.
    """
    _check_num_intervals(num_intervals)
    steps = torch.arange(num_intervals + 1, dtype=torch.float64)
    return _warp(steps / num_intervals, alpha=alpha, beta=beta)


class BoxGrid(nn.Module):
    """Targets, losses and decoding of coordinates on one grid.

    Has no weights; its points follow from the settings and are not in the
    state dict. They stay float32 (or float64) in half-precision models.

    Args:
        alpha: Largest magnitude, > 0, in the unit of the target.
        beta: Density around 0, at least 0; 0 is a uniform grid.
        num_intervals: n, the number of intervals between n + 1 points.
        one_sided: Whether the grid covers [0, alpha] instead of
            [-alpha, alpha].

    Raises:
        ValueError: If a setting is out of range, or if two points coincide.
    """

    points: Tensor

    def __init__(
        self,
        alpha: float,
        *,
        beta: float = 1.0,
        num_intervals: int = 10,
        one_sided: bool = False,
    ) -> None:
        super().__init__()
        self.alpha = float(alpha)
        self.beta = float(beta)
        self.num_intervals = num_intervals
        self.one_sided = one_sided
        self.register_buffer('points', self._make_points(), persistent=False)

    @property
    def num_points(self) -> int:
        """Number of logits of one coordinate, n + 1."""
        return self.num_intervals + 1

    def extra_repr(self) -> str:
        """Return the settings."""
        return (
            f'alpha={self.alpha:g}, beta={self.beta:g}, '
            f'num_intervals={self.num_intervals}, one_sided={self.one_sided}'
        )

    def forward(self, logits: Tensor) -> Tensor:
        """Return the expectation, see :meth:`expectation`."""
        return self.expectation(logits)

    def expectation(self, logits: Tensor) -> Tensor:
        """Return sum_i p_i y_i of p = softmax(logits).

        Args:
            logits: (..., n + 1).

        Returns:
            (...), within the grid, at least float32.
        """
        # No matmul: autocast and TF32 would round its operands.
        return (_wide(logits).softmax(dim=-1) * self.points).sum(dim=-1)

    def two_hot(self, target: Tensor) -> Tensor:
        """Return the distribution on the two points around each target.

        p*_l = (y_{l+1} - T) / (y_{l+1} - y_l), p*_{l+1} = 1 - p*_l, so that
        sum_i p*_i y_i = T.

        >>> grid = BoxGrid(2.0, beta=0.0, num_intervals=4)
        >>> grid.two_hot(torch.tensor(0.25))
        tensor([0.0000, 0.0000, 0.7500, 0.2500, 0.0000])

        Args:
            target: (...), clamped to the grid.

        Returns:
            (..., n + 1), rows sum to 1.
        """
        index, upper = self._locate(target)
        hot = upper.new_zeros((*upper.shape, self.num_points))
        hot.scatter_(-1, index[..., None], (1 - upper)[..., None])
        return hot.scatter_(-1, index[..., None] + 1, upper[..., None])

    def cross_entropy(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return -sum_i p*_i log p_i.

        Args:
            logits: (..., n + 1).
            target: (...), clamped to the grid.

        Returns:
            (...), at least the target's entropy.
        """
        index, upper = self._locate(target)
        log_p = _wide(logits).log_softmax(dim=-1)
        pair = torch.stack([index, index + 1], dim=-1)
        low, high = log_p.gather(-1, pair).unbind(-1)
        return -((1 - upper) * low + upper * high)

    def entropy(self, logits: Tensor) -> Tensor:
        """Return H(p) = -sum_i p_i log p_i in nats (UGS, eq. 12).

        Args:
            logits: (..., n + 1).

        Returns:
            (...), in [0, log(n + 1)].
        """
        log_p = _wide(logits).log_softmax(dim=-1)
        return -(log_p.exp() * log_p).sum(dim=-1)

    def target_entropy(self, target: Tensor) -> Tensor:
        """Return H(p*) of the two-hot target in nats.

        Args:
            target: (...), clamped to the grid.

        Returns:
            (...), in [0, log 2]; 0 on a grid point.
        """
        _, upper = self._locate(target)
        return -(torch.xlogy(upper, upper) + torch.xlogy(1 - upper, 1 - upper))

    def entropy_gap(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return |H(p) - H(p*)|, which asks for the target's uncertainty.

        A target between two points has entropy itself, so plain minimisation
        would push too far (a reconstruction of C-BBL's term).

        Args:
            logits: (..., n + 1).
            target: (...), clamped to the grid.

        Returns:
            (...), at least 0.
        """
        return (self.entropy(logits) - self.target_entropy(target)).abs()

    def expected_rms(self, logits: Tensor, *, step: float | Tensor) -> Tensor:
        """Predict the error of the expectation when logits are rounded.

        With dT/dz_i = p_i (y_i - T) and independent errors of the logits,
        uniform in [-step/2, step/2], to first order:
        rms = step / sqrt(12) sqrt(sum_i p_i^2 (y_i - T)^2). For p on two
        points with gap d this is step / sqrt(12) sqrt(2) p (1 - p) d.

        Args:
            logits: (..., n + 1), unrounded.
            step: Scale of the logits' grid, a number or broadcastable to
                (..., n + 1).

        Returns:
            (...), in the unit of the target.
        """
        p = _wide(logits).softmax(dim=-1)
        offsets = self.points - (p * self.points).sum(dim=-1, keepdim=True)
        errors = p * offsets * step / math.sqrt(12)
        return errors.square().sum(dim=-1).sqrt()

    def _locate(self, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return the lower point l of each target and the share of l + 1."""
        points = self.points
        value = _wide(target).detach().to(points.dtype)
        value = value.clamp(float(points[0]), float(points[-1])).contiguous()
        # Inner points only, so that both ends fall into outermost intervals.
        index = torch.searchsorted(points[1:-1].contiguous(), value)
        low, high = points[index], points[index + 1]
        return index, (value - low) / (high - low)

    def _make_points(self) -> Tensor:
        make = one_sided_grid if self.one_sided else nonuniform_grid
        return make(
            self.alpha, beta=self.beta, num_intervals=self.num_intervals
        )

    def _apply(
        self, fn: Callable[[Tensor], Tensor], recurse: bool = True
    ) -> BoxGrid:
        """Move like any module, but never round the points to half."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        wide = self.points.dtype == torch.float64
        dtype = torch.float64 if wide else torch.float32
        self.points = self._make_points().to(self.points.device, dtype)
        return self


# Without weights, but the precision of boxes hangs on it.
register_float(BoxGrid, 'box grid: softmax and expectation stay float')


def _check_num_intervals(num_intervals: int) -> None:
    if type(num_intervals) is not int or num_intervals < 1:
        raise ValueError(
            f'num_intervals={num_intervals!r}: give a whole number of at '
            'least 1'
        )


def _warp(uniform: Tensor, *, alpha: float, beta: float) -> Tensor:
    """Map points of [-1, 1] to the exponential grid of [-alpha, alpha]."""
    if not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(f'alpha={alpha}: give a finite number above 0')
    if not (math.isfinite(beta) and beta >= 0):
        raise ValueError(f'beta={beta}: give a finite number of at least 0')
    points = alpha * uniform
    if beta > 0:
        # Written with e^-x, which cannot overflow for any alpha * beta.
        shrink = torch.exp(beta * (points.abs() - alpha))
        ratio = torch.expm1(-beta * points.abs()) / math.expm1(-beta * alpha)
        points = points.sign() * alpha * shrink * ratio
    points = points.float()
    if not bool((points.diff() > 0).all()):
        raise ValueError(
            f'alpha={alpha}, beta={beta}: points of the grid coincide in '
            'float32: choose a smaller beta'
        )
    return points


def _wide(values: Tensor) -> Tensor:
    """Return at least float32; half precision is too coarse."""
    return values if values.dtype == torch.float64 else values.float()
