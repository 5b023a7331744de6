"""Weights as matrices of output channels, and back."""

import pytest
import torch
from torch import nn

from taskptq.reconstruction.rounding.weight_matrix import (
    from_matrix,
    groups_of,
    mask_matrix,
    to_matrix,
)


@pytest.mark.parametrize(
    ('layer', 'transposed', 'shape'),
    [
        (nn.Linear(6, 4), False, (1, 4, 6)),
        (nn.Conv2d(4, 6, 3, groups=2), False, (2, 3, 18)),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), True, (2, 3, 18)),
    ],
)
def test_rows_are_output_channels(layer, transposed, shape):
    weight = layer.weight.detach()
    groups = groups_of(layer)
    matrix = to_matrix(weight, groups=groups, transposed=transposed)
    assert matrix.shape == shape
    back = from_matrix(matrix, shape=weight.shape, transposed=transposed)
    assert torch.equal(back, weight)
    # Output channel 1 of the first group reads what row 1 holds
    own = weight[: weight.shape[0] // groups, 1] if transposed else weight[1]
    assert torch.equal(matrix[0, 1].sort().values, own.flatten().sort().values)


def test_masks_follow_or_are_absent():
    mask = torch.rand(4, 2, 3, 3) > 0.5
    assert mask_matrix(None, groups=2, transposed=False) is None
    found = mask_matrix(mask, groups=2, transposed=False)
    assert torch.equal(found.reshape(mask.shape), mask)
