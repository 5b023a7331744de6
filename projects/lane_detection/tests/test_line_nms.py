"""Line NMS equals its definition, whatever the chunks."""

import pytest
import torch

from lane_detection.models.line_nms import line_distances, line_nms


def random_lanes(count, *, rows=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    xs = torch.rand(count, rows, generator=generator) * 40
    xs += torch.rand(count, 1, generator=generator) * 200
    start = torch.randint(0, rows, (count, 1), generator=generator)
    length = torch.randint(0, rows, (count, 1), generator=generator)
    row = torch.arange(rows)
    valid = (row >= start) & (row < start + length)
    return xs, valid, torch.rand(count, generator=generator)


def by_definition(xs, valid, scores, *, threshold, max_keep=None):
    kept = []
    for i in sorted(range(len(xs)), key=lambda i: (-float(scores[i]), i)):
        apart = True
        for j in kept:
            common = valid[i] & valid[j]
            if common.any():
                gap = (xs[i] - xs[j])[common].abs().mean()
                apart &= bool(gap >= threshold)
        if apart and (max_keep is None or len(kept) < max_keep):
            kept.append(i)
    return kept


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('max_keep', [None, 4])
@pytest.mark.parametrize('count', [50, 80])  # in rounds, and all at once
def test_equals_its_definition(seed, max_keep, count):
    xs, valid, scores = random_lanes(count, seed=seed)
    kept = line_nms(xs, scores, valid=valid, threshold=30.0, max_keep=max_keep)
    expected = by_definition(
        xs, valid, scores, threshold=30.0, max_keep=max_keep
    )
    assert kept.tolist() == expected
    assert 1 < len(expected) < count


def test_of_equal_scores_the_first_wins():
    xs = torch.tensor([[10.0, 10], [12, 12], [90, 90]])
    kept = line_nms(
        xs, torch.ones(3), valid=torch.ones(3, 2).bool(), threshold=5.0
    )
    assert kept.tolist() == [0, 2]


def test_lanes_without_a_common_row_never_suppress():
    xs = torch.zeros(2, 4)
    valid = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]]).bool()
    kept = line_nms(xs, torch.tensor([0.1, 0.9]), valid=valid, threshold=9.0)
    assert kept.tolist() == [1, 0]
    empty = line_nms(xs[:0], torch.zeros(0), valid=valid[:0], threshold=9.0)
    assert empty.shape == (0,)


def test_distances_in_chunks():
    xs, valid, _ = random_lanes(37)
    other, other_valid, _ = random_lanes(5, seed=1)
    whole = line_distances(xs, other, valid=valid, other_valid=other_valid)
    chunked = line_distances(
        xs, other, valid=valid, other_valid=other_valid, chunk=4
    )
    assert whole.shape == (37, 5)
    assert torch.equal(whole, chunked)
    mirrored = line_distances(other, xs, valid=other_valid, other_valid=valid)
    assert torch.allclose(whole, mirrored.T)
    assert whole.isinf().any()
    assert (whole[whole.isfinite()] > 0).all()
