"""The similarity of boxes as Gaussians: the formula."""

import math

import pytest
import torch

from taskptq.methods.box_grid.wasserstein import wasserstein_similarity


def boxes(*rows):
    return torch.tensor(rows, dtype=torch.float32)


def random_boxes(number, *, size=40.0):
    low = torch.rand(number, 2) * size
    return torch.cat([low, low + 1 + torch.rand(number, 2) * size], dim=1)


def test_formula_on_a_box_by_hand():
    # Centers (2, 3) and (5, 7); sizes (4, 6) and (2, 2).
    one, two = boxes([0, 0, 4, 6]), boxes([4, 6, 6, 8])
    distance = math.sqrt(3**2 + 4**2 + (2**2 + 4**2) / 4)
    found = wasserstein_similarity(one, two, constant=10)
    torch.testing.assert_close(
        found, torch.tensor([[math.exp(-distance / 10)]])
    )


def test_pairs_and_aligned_agree_and_are_symmetric():
    one, two = random_boxes(6), random_boxes(6)
    matrix = wasserstein_similarity(one, two)
    torch.testing.assert_close(
        matrix.diagonal(), wasserstein_similarity(one, two, aligned=True)
    )
    torch.testing.assert_close(matrix.T, wasserstein_similarity(two, one))
    assert bool((wasserstein_similarity(one, one).diagonal() == 1).all())


def test_it_falls_smoothly_where_overlap_is_gone():
    tiny = boxes([0, 0, 3, 3])
    shifts = torch.arange(0, 9)[:, None]
    moved = tiny + shifts
    similarity = wasserstein_similarity(tiny, moved)[0]
    assert bool((similarity.diff() < 0).all())
    ratio = similarity[1:] / similarity[:-1]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))


@pytest.mark.parametrize('sizes', [(0, 3), (3, 0), (0, 0)])
def test_no_boxes(sizes):
    one, two = random_boxes(sizes[0]), random_boxes(sizes[1])
    assert wasserstein_similarity(one, two).shape == sizes


def test_far_coordinates_keep_their_precision():
    one = boxes([8000, 6000, 8004, 6004])
    two = one + 0.5
    expected = math.exp(-math.sqrt(0.5) / 12.8)
    assert wasserstein_similarity(one, two).item() == pytest.approx(
        expected, abs=1e-6
    )


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(constant=0), 'constant=0'),
        (dict(aligned=True), '2 and 3 boxes'),
    ],
)
def test_impossible_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        wasserstein_similarity(random_boxes(2), random_boxes(3), **arguments)
