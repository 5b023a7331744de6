"""The peak decision, on samples whose peaks are known."""

import numpy as np
import pytest
import torch

from taskptq.methods.rewriting.density_peaks import (
    NUM_POINTS,
    estimate_density,
    find_density_peaks,
)


def clusters(*centers, deviation=0.5, count=1500):
    """Evenly spaced quantiles of normal distributions: no chance in it."""
    levels = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    bell = torch.special.ndtri(levels) * deviation
    return torch.cat([bell + center for center in centers])


@pytest.mark.parametrize(
    'centers', [(0.0,), (-3.0, 3.0), (-4.0, 2.0), (-6.0, 0.0, 6.0)]
)
def test_peaks_are_where_the_clusters_are(centers):
    peaks = find_density_peaks(clusters(*centers))
    step = (peaks.high - peaks.low) / (NUM_POINTS - 1)
    assert peaks.positions == pytest.approx(centers, abs=step)
    assert peaks.bimodal == (len(centers) == 2)


def test_close_clusters_are_one_peak():
    """Two maxima 16 of 128 points apart; the far values set the range."""
    ends = torch.tensor([-8.0, 8.0], dtype=torch.float64)
    values = torch.cat([clusters(-1.0, 1.0, deviation=0.3), ends])
    peaks = find_density_peaks(values)
    _, density = estimate_density(values)
    rising = np.diff(density) > 0
    maxima = (rising[:-1] & ~rising[1:]).sum()
    assert maxima >= 2
    assert len(peaks.positions) == 1


def test_low_peak_does_not_count():
    """3 % of the values in a flat bump stay below 0.01 of the sum."""
    main, bump = clusters(0.0), clusters(8.0, deviation=1.0, count=45)
    assert len(find_density_peaks(torch.cat([main, bump])).positions) == 1
    more = clusters(8.0, deviation=1.0, count=1500)
    assert find_density_peaks(torch.cat([main, more])).bimodal


def test_density_is_that_of_scipy():
    from scipy.stats import gaussian_kde

    values = torch.randn(500, dtype=torch.float64)
    grid, density = estimate_density(values)
    assert grid == pytest.approx(np.linspace(values.min(), values.max(), 128))
    assert density == pytest.approx(gaussian_kde(values.numpy())(grid))


def test_a_sample_has_the_bandwidth_of_the_whole():
    whole = clusters(-1.0, 1.0, deviation=0.4, count=20000)
    part = whole[::20]
    _, expected = estimate_density(whole)
    ends = dict(low=float(whole.min()), high=float(whole.max()))
    _, same = estimate_density(part, num_values=whole.numel(), **ends)
    _, wider = estimate_density(part, **ends)
    error = np.abs(same - expected).max()
    assert error < 0.02 * expected.max()
    assert np.abs(wider - expected).max() > 4 * error


def test_equal_values_have_no_peak():
    assert find_density_peaks(torch.full((50,), 2.0)).positions == ()


@pytest.mark.parametrize('values', [[], [1.0, float('nan')]])
def test_unusable_sample(values):
    with pytest.raises(ValueError, match='finite values'):
        find_density_peaks(torch.tensor(values))


def test_plain_types():
    plain = find_density_peaks(clusters(-3.0, 3.0)).to_dict()
    assert plain['bimodal'] is True
    assert [type(x) for x in plain['positions']] == [float, float]
    assert plain['num_values'] == plain['num_sampled'] == 3000
