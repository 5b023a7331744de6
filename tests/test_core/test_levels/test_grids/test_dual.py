"""Two planes of zeros and ones."""

import torch

from taskptq.core.levels.grids.dual import Dual
from taskptq.core.levels.levels import fit, nearest_level

ROWS = torch.tensor([[-0.5, -0.2, -0.1, 0.1, 0.2, 0.4, 0.5, 0.9]])


def on_levels(rows, first, second):
    coefficients = torch.tensor([[first, second]], requires_grad=True)
    levels, _ = Dual().ordered(coefficients)
    return levels.gather(1, nearest_level(rows, levels)), coefficients


def test_start_of_a_two_bit_range():
    w_hat, _ = on_levels(ROWS, 0.6, -0.3)
    torch.testing.assert_close(
        w_hat, torch.tensor([[-0.3, -0.3, 0, 0, 0.3, 0.3, 0.6, 0.6]])
    )


def test_learned_scales_and_their_gradients():
    w_hat, coefficients = on_levels(ROWS, 0.7, -0.25)
    torch.testing.assert_close(
        w_hat, torch.tensor([[-0.25, -0.25, 0, 0, 0, 0.45, 0.45, 0.7]])
    )
    w_hat.backward(torch.tensor([[0.1, -0.2, 0.3, 0.1, -0.1, 0.2, 0.4, -0.3]]))
    torch.testing.assert_close(coefficients.grad, torch.tensor([[0.3, 0.5]]))


def test_nearest_level_is_the_published_thresholds():
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        second = -float(torch.rand((), generator=generator)) - 0.05
        first = -second + float(torch.rand((), generator=generator)) + 0.05
        rows = torch.randn(1, 64, generator=generator)
        one = (rows - (first + second) / 2 >= 0).float()
        two = (-(rows - first * one - second / 2) >= 0).float()
        w_hat, _ = on_levels(rows, first, second)
        torch.testing.assert_close(w_hat, first * one + second * two)


def test_the_longer_side_goes_where_the_weights_are():
    skewed = torch.rand(1, 400, generator=torch.Generator().manual_seed(0))
    skewed = skewed.pow(2) * 2 - 0.3
    up, down = fit(Dual(), skewed), fit(Dual(), -skewed)
    assert float(up[0, 0]) > 0 > float(down[0, 0])
    torch.testing.assert_close(up, -down)
