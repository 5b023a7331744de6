"""Outputs of grid heads, points last."""

from types import SimpleNamespace

import pytest
import torch

from taskptq.engine.grid_outputs import (
    box_probability,
    num_points,
    split_map,
    split_regions,
)


def test_maps_split_by_prior_coordinate_and_point():
    output = torch.arange(2 * 3 * 4 * 5 * 2 * 2.0).view(2, 60, 2, 2)
    split = split_map(output, points=5)
    assert split.shape == (2, 3, 2, 2, 4, 5)
    # prior 1, coordinate 2, point 3
    assert split[1, 1, 0, 1, 2, 3] == output[1, (4 + 2) * 5 + 3, 0, 1]
    repeated = box_probability(torch.tensor([[0.1, 0.9]]), num_outputs=6)
    assert repeated.tolist()[0] == pytest.approx([0.1] * 3 + [0.9] * 3)


@pytest.mark.parametrize('classes', [1, 3])
@pytest.mark.parametrize('rows', [0, 2])
def test_regions_split_by_class(rows, classes):
    output = torch.arange(rows * classes * 20.0).view(rows, classes * 20)
    split = split_regions(output, points=5)
    assert split.shape == (rows, classes, 4, 5)
    assert torch.equal(split.flatten(1), output)


@pytest.mark.parametrize(
    ('head', 'points'),
    [
        (SimpleNamespace(box_grid=SimpleNamespace(num_points=9)), 9),
        (SimpleNamespace(integral=None, reg_max=16), 17),
        (SimpleNamespace(reg_max=16), None),
        (object(), None),
    ],
)
def test_points_of_a_head(head, points):
    assert num_points(head) == points
