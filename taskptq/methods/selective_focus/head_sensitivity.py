"""Estimate how much each head's error distorts predictions, without decoding.

Fan et al. (AAAI 2024) measure the sensitivity of heads at run time; according
to a secondary source, interpolation keeps this cheap. This is our
reconstruction: before optimization, parts of each head's quantization error
are applied, and the distance of the decoded predictions is recorded over the
error. During optimization the sensitivity is read from that curve at the
current error, and occasional exact measurements add points.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence

from torch import Tensor

from taskptq.methods.selective_focus.head_swaps import HeadSwaps

__all__ = ['MonotoneCurve', 'build_curves', 'isotonic']


def isotonic(values: Sequence[float]) -> list[float]:
    """Return the closest non-decreasing values, in least squares.

    Pool adjacent violators (Barlow et al., 1972).

    >>> isotonic([1.0, 3.0, 2.0, 4.0])
    [1.0, 2.5, 2.5, 4.0]
    """
    pools: list[tuple[float, int]] = []
    for value in values:
        pools.append((value, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (one, count_one), (two, count_two) = pools[-2:]
            count = count_one + count_two
            mean = (one * count_one + two * count_two) / count
            pools[-2:] = [(mean, count)]
    return [mean for mean, count in pools for _ in range(count)]


class MonotoneCurve:
    """Piecewise-linear, non-decreasing curve through (0, 0) and points.

    Points that violate the order are averaged. The curve is constant beyond
    the last point.

    Args:
        points: (error, sensitivity), both at least 0.
    """

    def __init__(self, points: Sequence[tuple[float, float]] = ()) -> None:
        self._points: list[tuple[float, float]] = []
        self._xs: list[float] = [0.0]
        self._ys: list[float] = [0.0]
        for error, value in points:
            self.add(error, value)

    def add(self, error: float, value: float) -> None:
        """Add one measured point; error 0 always has the value 0."""
        if error <= 0:
            return
        self._points.append((error, value))
        self._points.sort()
        self._xs = [0.0, *(x for x, _ in self._points)]
        self._ys = [0.0, *isotonic([y for _, y in self._points])]

    def __call__(self, error: float) -> float:
        """Return the sensitivity at an error."""
        if error >= self._xs[-1]:
            return self._ys[-1]
        right = bisect_right(self._xs, max(error, 0.0))
        x0, x1 = self._xs[right - 1], self._xs[right]
        y0, y1 = self._ys[right - 1], self._ys[right]
        return y0 + (y1 - y0) * (error - x0) / (x1 - x0)


def build_curves(
    swaps: HeadSwaps,
    quant: Sequence[Mapping[str, Tensor]],
    *,
    errors: Mapping[str, float],
    strengths: Sequence[float],
) -> dict[str, MonotoneCurve]:
    """Measure each head's curve of sensitivity over error.

    Args:
        swaps: Decodes mixtures of float and quantized heads.
        quant: Named outputs of the quantized model, by batch.
        errors: Error of each head at full strength, a weighted mean square.
        strengths: Parts lambda of the error to measure at.

    Returns:
        Curves by head.
    """
    measured = swaps.curves(quant, strengths=strengths)
    # Errors are squared: a part lambda of the error has lambda^2 of it.
    return {
        name: MonotoneCurve(
            [
                (strength**2 * errors[name], value)
                for strength, value in zip(strengths, values, strict=True)
            ]
        )
        for name, values in measured.items()
    }
