"""Two levels at any place."""

import torch

from taskptq.core.levels.grids.shifted import Shifted
from taskptq.core.levels.levels import fit


def test_levels_follow_a_shift_of_the_values():
    rows = torch.randn(1, 3000, generator=torch.Generator().manual_seed(0))
    at_zero, moved = fit(Shifted(), rows), fit(Shifted(), rows + 5)
    torch.testing.assert_close(moved[:, 0], at_zero[:, 0])
    torch.testing.assert_close(moved[:, 1], at_zero[:, 1] + 5)


def test_outputs_of_a_relu_get_a_threshold_above_zero():
    rows = torch.randn(1, 3000, generator=torch.Generator().manual_seed(0))
    found = fit(Shifted(), rows.relu())
    assert float(found[0, 1]) > 0
    low, high = Shifted().ordered(found)[0][0].tolist()
    assert 0 <= low < high
