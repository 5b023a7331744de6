"""Two signed planes."""

import pytest
import torch

from taskptq.core.levels.grids.two_plane import TwoPlane
from taskptq.core.levels.levels import fit, nearest_level

ROWS = torch.tensor([[0.9, -0.2, 0.4, -0.7]])


def test_start_and_levels():
    (start,) = TwoPlane().starts(ROWS)
    torch.testing.assert_close(start, torch.tensor([[0.55, 0.25]]))
    levels, _ = TwoPlane().ordered(start)
    w_hat = levels.gather(1, nearest_level(ROWS, levels))
    torch.testing.assert_close(w_hat, torch.tensor([[0.8, -0.3, 0.3, -0.8]]))
    torch.testing.assert_close(
        (ROWS - w_hat).square().sum(), torch.tensor(0.04)
    )


def test_nearest_level_is_the_sum_of_two_signs():
    rows = torch.randn(1, 500, generator=torch.Generator().manual_seed(1))
    first, second = 0.9, 0.4
    levels, _ = TwoPlane().ordered(torch.tensor([[first, second]]))
    one = torch.where(rows >= 0, first, -first)
    two = torch.where(rows - one >= 0, second, -second)
    found = levels.gather(1, nearest_level(rows, levels))
    torch.testing.assert_close(found, one + two)


def test_gradients_of_both_sizes():
    sizes = torch.tensor([[0.55, 0.25]], requires_grad=True)
    levels, _ = TwoPlane().ordered(sizes)
    w_hat = levels.gather(1, nearest_level(ROWS, levels))
    w_hat.backward(torch.tensor([[1.0, 2.0, -1.0, 0.5]]))
    torch.testing.assert_close(sizes.grad, torch.tensor([[-2.5, 3.5]]))


def test_gaussian_optimum_is_that_of_lloyd_and_max():
    rows = torch.randn(1, 400000, generator=torch.Generator().manual_seed(0))
    found = fit(TwoPlane(), rows)
    torch.testing.assert_close(
        found, torch.tensor([[0.983, 0.529]]), atol=0.01, rtol=0
    )


@pytest.mark.parametrize('sizes', [(0.2, 0.5), (0.5, -0.2), (-0.5, -0.2)])
def test_repair_keeps_the_levels(sizes):
    before = torch.tensor([sizes])
    after = TwoPlane().repaired(before)
    assert not list(TwoPlane().faults(after))
    assert torch.equal(
        TwoPlane().ordered(before)[0], TwoPlane().ordered(after)[0]
    )
