"""Distances between decoded predictions."""

import pytest
import torch

from taskptq.methods.selective_focus.decoded_distance import (
    LabelDisagreement,
    LaneDistance,
    build_distance,
)


def test_lane_distance():
    lane = torch.tensor([[10.0, 60.0], [10.0, 0.0]])
    meta = {'crop': (0, 0, 64, 61)}
    distance = build_distance(
        dict(type='lane_distortion', num_rows=5, gamma=20.0)
    )
    assert isinstance(distance, LaneDistance)
    found = distance(
        [[lane], [lane]],
        [[lane + torch.tensor([5.0, 0])], []],
        [meta, {'ori_shape': (61, 64)}],
    )
    assert found == pytest.approx([5.0, 20.0])
    with pytest.raises(ValueError, match='crop or ori_shape'):
        distance([[lane]], [[lane]], [{}])


def test_distances_by_name():
    disagreement = build_distance('label_disagreement')
    assert isinstance(disagreement, LabelDisagreement)
    one, two = torch.tensor([[0, 1]]), torch.tensor([[0, 2]])
    assert disagreement([one], [two], [{}]) == [0.5]
    assert build_distance(disagreement) is disagreement
    with pytest.raises(ValueError, match="distance='far'"):
        build_distance('far')
