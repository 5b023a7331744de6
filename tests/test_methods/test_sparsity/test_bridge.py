import math

import pytest
import torch

from taskptq.methods.sparsity.bridge import (
    density,
    moved_counts,
    on_budget,
    rate_at,
    rate_slope,
)
from tests.test_methods.test_sparsity.test_masks import A, B


@pytest.mark.parametrize(
    ('thresholds', 'rates', 'together'),
    [((0.25, 0.03), (0.5, 5 / 12), 0.45), ((0.4, 0.02), (0.625, 0.25), 0.4)],
)
def test_rates_of_thresholds(thresholds, rates, together):
    found = [rate_at(w, t) for w, t in zip((A, B), thresholds, strict=True)]
    assert found == pytest.approx(rates)
    assert (8 * found[0] + 12 * found[1]) / 20 == pytest.approx(together)


def test_density_of_few_values():
    values = torch.tensor([-2.0, -1, -1, 0, 0, 0, 1, 1, 1, 2])
    at = torch.tensor([-1.5, -0.5, 0.5, 1.5, 2.5])
    found = density(values, at, bins=4)
    assert found.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4, 0])
    for threshold, rate in ((0.5, 0.3), (1.5, 0.8)):
        assert float(rate_slope(values, threshold, bins=4)) == pytest.approx(
            0.5
        )
        assert rate_at(values, threshold) == pytest.approx(rate)


@pytest.mark.parametrize(
    ('threshold', 'rate', 'slope'),
    [(0.05, 0.68269, 9.679), (0.1, 0.9545, 2.160), (0.01, 0.15852, 15.64)],
)
def test_slope_of_normal_weights(threshold, rate, slope):
    generator = torch.Generator().manual_seed(0)
    weight = 0.05 * torch.randn(20_000, generator=generator)
    assert rate_at(weight, threshold) == pytest.approx(rate, abs=0.01)
    found = float(rate_slope(weight, threshold, bins=100))
    assert found == pytest.approx(slope, rel=0.1)


def test_equal_values_have_no_density():
    assert float(density(torch.ones(5), 1.0)) == 0


def test_moving_one_threshold_moves_the_others_back():
    """The cut's derivative agrees with finite differences of exact cuts."""
    generator = torch.Generator().manual_seed(0)
    magnitudes = [
        (scale * torch.randn(size, generator=generator)).abs().double()
        for scale, size in ((0.1, 200_000), (0.02, 400_000))
    ]
    tau = torch.tensor([0.1, 0.02], dtype=torch.float64)

    def thresholds(tau):
        scores = torch.cat(
            [m / t for m, t in zip(magnitudes, tau, strict=True)]
        )
        return float(scores.kthvalue(int(0.7 * len(scores))).values) * tau

    step = 0.05
    moved = tau.clone()
    moved[0] *= math.exp(step)
    exact = (thresholds(moved).log() - thresholds(tau).log()) / step
    counts = moved_counts(magnitudes, thresholds(tau))
    expected = torch.stack(
        [
            on_budget(torch.eye(2, dtype=torch.float64)[layer], counts)[0]
            for layer in range(2)
        ]
    )
    torch.testing.assert_close(exact, expected, atol=0.02, rtol=0)


def test_a_projected_gradient_leaves_the_rate():
    weights = torch.tensor([3.0, 1.0, 6.0])
    gradient = on_budget(torch.tensor([0.5, -2.0, 1.0]), weights)
    assert float(gradient.sum()) == pytest.approx(0, abs=1e-6)
    # What costs the same for each removed weight has nothing to gain.
    assert on_budget(2 * weights, weights).abs().max() < 1e-6
    assert on_budget(weights, torch.zeros(3)).tolist() == [0, 0, 0]
