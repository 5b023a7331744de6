"""Find the peaks of a distribution, by which bimodal integration decides.

The analysis shows them too. SciPy keeps this module out of the core.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]

# Lv et al., PTQ4SAM, CVPR 2024: points of the density, minimum height of a
# peak as a share of the density's sum, minimum distance of peaks in points.
NUM_POINTS = 128
MIN_HEIGHT = 0.01
MIN_DISTANCE = 32


@dataclass(frozen=True, kw_only=True)
class DensityPeaks:
    """Peaks of a density over [low, high].

    Args:
        positions: Positions of the peaks, in the units of the values.
        heights: Density at each peak.
        low: Lowest value.
        high: Highest value.
        num_values: Number of values of the distribution.
        num_sampled: Number of values used to estimate the density.
    """

    positions: tuple[float, ...]
    heights: tuple[float, ...]
    low: float
    high: float
    num_values: int
    num_sampled: int

    @property
    def bimodal(self) -> bool:
        """Whether there are exactly two peaks."""
        return len(self.positions) == 2

    def to_dict(self) -> dict[str, Any]:
        """Return plain types."""
        plain = asdict(self) | {'bimodal': self.bimodal}
        plain['positions'] = list(self.positions)
        plain['heights'] = list(self.heights)
        return plain


def estimate_density(
    sample: Tensor,
    *,
    low: float | None = None,
    high: float | None = None,
    num_values: int | None = None,
) -> tuple[Array, Array]:
    """Estimate a density with Gaussian kernels (SciPy's ``gaussian_kde``).

    The time grows with ``NUM_POINTS`` times the sample's size, so pass a
    sample of a large tensor. Scott's bandwidth, std * n^(-1/5), depends on
    n; ``num_values`` keeps that of the whole tensor, so that the estimate
    from a sample is noisier but not smoother.

    Args:
        sample: Values of any shape, not all equal.
        low: Start of the grid; None is the sample's lowest value.
        high: End of the grid; None is the sample's highest value.
        num_values: Number of values of the tensor that the sample comes
            from; None if it is the tensor itself.

    Returns:
        Grid and density, ``NUM_POINTS`` each.
    """
    from scipy.stats import gaussian_kde

    values = sample.detach().double().cpu().numpy().reshape(-1)
    count = values.size if num_values is None else num_values
    grid = np.linspace(
        values.min() if low is None else low,
        values.max() if high is None else high,
        NUM_POINTS,
    )
    kernel = gaussian_kde(values, bw_method=count ** (-1 / 5))
    return grid, np.asarray(kernel(grid), dtype=np.float64)


def find_density_peaks(
    sample: Tensor,
    *,
    low: float | None = None,
    high: float | None = None,
    num_values: int | None = None,
) -> DensityPeaks:
    """Find the peaks of a distribution as PTQ4SAM does.

    The density is estimated at 128 points from the lowest to the highest
    value. A peak is a local maximum of at least 0.01 times the sum of the
    density, at least 32 points from a higher one (Lv et al., CVPR 2024).

    Args:
        sample: Values of any shape.
        low: Lowest value of the distribution; None is the sample's.
        high: Highest value of the distribution; None is the sample's.
        num_values: Number of values of the distribution; None is the
            sample's size.

    Returns:
        The peaks; none if all values are equal.

    Raises:
        ValueError: If the sample is empty or not finite.
    """
    from scipy.signal import find_peaks

    if sample.numel() == 0 or not bool(sample.isfinite().all()):
        raise ValueError(
            f'sample of shape {tuple(sample.shape)} is empty or contains NaN '
            'or infinity: give finite values'
        )
    low = float(sample.min()) if low is None else low
    high = float(sample.max()) if high is None else high
    count = sample.numel() if num_values is None else num_values
    positions: Array = np.empty(0)
    heights: Array = np.empty(0)
    if float(sample.double().std(correction=0)) > 0 and high > low:
        grid, density = estimate_density(
            sample, low=low, high=high, num_values=count
        )
        found, _ = find_peaks(
            density,
            height=MIN_HEIGHT * density.sum(),
            distance=MIN_DISTANCE,
        )
        positions, heights = grid[found], density[found]
    return DensityPeaks(
        positions=tuple(positions.tolist()),
        heights=tuple(heights.tolist()),
        low=low,
        high=high,
        num_values=count,
        num_sampled=sample.numel(),
    )
