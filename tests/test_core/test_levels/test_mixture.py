"""The mixture against figures worked out by hand."""

import torch

from taskptq.core.levels.mixture import (
    Mixture,
    mixture_pull,
    responsibilities,
    start_mixture,
    update_mixture,
)

W = torch.tensor([-0.8, -0.5, -0.1, 0.2, 0.4, 0.9], dtype=torch.float64)
MIXTURE = Mixture(
    means=torch.tensor([-0.5, 0.5], dtype=torch.float64),
    spreads=torch.full((2,), 0.3, dtype=torch.float64),
    shares=torch.full((2,), 0.5, dtype=torch.float64),
)
CLOSE = {'atol': 1e-6, 'rtol': 0}


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_responsibilities():
    found = responsibilities(W, MIXTURE)
    torch.testing.assert_close(
        found[:, 1],
        double(0.000138, 0.003851, 0.247664, 0.902227, 0.988393, 0.999955),
        **CLOSE,
    )
    torch.testing.assert_close(found.sum(dim=1), torch.ones_like(W))


def test_pull_is_of_weights_strictly_between_the_means():
    torch.testing.assert_close(
        mixture_pull(W, MIXTURE),
        double(0, 0, -0.152336, 0.202227, 0.088393, 0),
        **CLOSE,
    )


def test_update():
    found = update_mixture(W, MIXTURE)
    torch.testing.assert_close(
        found.means, double(-0.472032, 0.461125), **CLOSE
    )
    torch.testing.assert_close(
        found.spreads, double(0.304817, 0.328736), **CLOSE
    )
    torch.testing.assert_close(
        found.shares, double(0.476295, 0.523705), **CLOSE
    )


def test_symmetric_update_keeps_the_boundary_at_zero():
    found = update_mixture(W, MIXTURE, symmetric=True)
    assert found.means[0] == -found.means[1]
    assert found.shares.tolist() == [0.5, 0.5]
    zero = responsibilities(torch.zeros(1, dtype=torch.float64), found)
    assert zero.tolist() == [[0.5, 0.5]]


def test_start_is_at_the_mean_magnitude():
    found = start_mixture(W)
    torch.testing.assert_close(found.means, double(-1, 1) * W.abs().mean())


def test_equal_weights_stay_finite():
    same = torch.full((4,), 0.3)
    mixture = start_mixture(same)
    for _ in range(5):
        mixture = update_mixture(same, mixture)
    assert mixture_pull(same, mixture).isfinite().all()
