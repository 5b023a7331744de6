"""Two signs and zero."""

import torch

from taskptq.core.levels.grids.ternary import Ternary
from taskptq.core.levels.levels import fit, nearest_level

ROWS = torch.tensor([[0.9, -0.05, 0.4, -0.7, 0.1, -0.35]])


def test_start_is_that_of_ternary_weight_networks():
    (start,) = Ternary().starts(ROWS)
    torch.testing.assert_close(start, torch.tensor([[0.5875]]))


def test_fit():
    size = fit(Ternary(), ROWS)
    torch.testing.assert_close(size, torch.tensor([[0.5875]]))
    levels, _ = Ternary().ordered(size)
    codes = nearest_level(ROWS, levels)
    assert codes.tolist() == [[2, 1, 2, 0, 1, 0]]
    error = (ROWS - levels.gather(1, codes)).square().sum()
    torch.testing.assert_close(error, torch.tensor(0.214375))


def test_a_channel_of_zeros_stays_zero():
    size = fit(Ternary(), torch.zeros(1, 5))
    assert bool(size.isfinite().all())
    levels, _ = Ternary().ordered(size)
    codes = nearest_level(torch.zeros(1, 5), levels)
    assert levels.gather(1, codes).eq(0).all()
