"""One bit."""

import torch

from taskptq.core.levels.grids.binary import Binary
from taskptq.core.levels.levels import fit


def test_the_best_size_is_the_mean_magnitude():
    rows = torch.tensor([[0.6, -0.2, 0.1, -0.9]])
    size = fit(Binary(), rows)
    torch.testing.assert_close(size, torch.tensor([[0.45]]))
    levels = size * torch.tensor([1.0, -1.0, 1.0, -1.0])
    torch.testing.assert_close(
        (rows - levels).square().sum(), torch.tensor(0.41)
    )


def test_relative_error_of_a_gaussian():
    rows = torch.randn(1, 200000, generator=torch.Generator().manual_seed(0))
    size = float(fit(Binary(), rows))
    error = (rows.abs() - size).square().mean() / rows.square().mean()
    assert abs(float(error) - 0.3639) < 0.003
