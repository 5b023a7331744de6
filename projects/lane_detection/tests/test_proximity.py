"""Proximity to lanes: 1 on a lane, falling off; what heads make of it."""

import pytest
import test_condlane
import test_ganet
import test_laneatt
import torch

from lane_detection.models.condlane_maps import expected_column
from lane_detection.models.ganet_head import GANetHead
from lane_detection.proximity import (
    LANE_WIDTH,
    cells_near_lanes,
    lines_near_lanes,
    placed_lanes,
    proximity,
)
from lane_detection.testing import lane_sample, road_lanes

UPRIGHT = torch.tensor([[0.5, 1.0], [0.5, 0.5]])


def test_proximity_falls_off():
    values = proximity(torch.tensor([0.0, 1.0, 2.0, torch.inf]), width=1.0)
    assert values[0] == 1
    assert values[1] == pytest.approx(0.6065, abs=1e-4)
    assert values[3] == 0
    assert (values.diff() < 0).all()


def test_cells_of_an_upright_lane():
    near = cells_near_lanes([UPRIGHT], cells=(4, 100), aspect=0.4)
    # Its lower half holds the lane; columns 49 and 50 touch it.
    assert near[2:, 49:51].min() > 0.95
    assert (near[2:, 50:].diff(dim=1) <= 0).all()
    assert near[0].max() < near[1].max() < near[2].max()
    assert near[:, 0].max() < 1e-6


def test_a_lane_is_at_least_as_wide_as_a_cell():
    near = cells_near_lanes([UPRIGHT], cells=(2, 5), aspect=1.0)
    assert near[1, 2] == 1
    assert near[1, 1] == pytest.approx(0.6065, abs=1e-4)


def test_lines_are_compared_at_the_rows_of_a_lane():
    rows = torch.full((3, 11), 0.5)
    rows[1] += LANE_WIDTH
    rows[2, :5] = 0.0  # above the lane's end
    near = lines_near_lanes(rows, [UPRIGHT])
    assert near.tolist() == pytest.approx([1, 0.6065, 1], abs=1e-4)
    slanted = torch.tensor([[0.2, 1.0], [0.7, 0.5], [0.9, 0.0]])
    rows = torch.tensor([[0.9, 0.8, 0.7, 0.45, 0.2]])
    assert lines_near_lanes(rows, [slanted]).item() == pytest.approx(1)


def test_images_without_lanes_have_no_weight():
    cells = cells_near_lanes([], cells=(3, 4), aspect=0.4)
    assert cells.shape == (3, 4)
    assert cells.sum() == 0
    assert lines_near_lanes(torch.rand(5, 9), []).tolist() == [0] * 5


def test_lanes_are_placed_in_the_input():
    sample = lane_sample(road_lanes(), img_shape=(64, 192))
    left, top, right, bottom = sample.metainfo['crop']
    corners = [[left, top], [right, bottom]]
    found = placed_lanes([corners], sample.metainfo, like=torch.zeros(()))
    torch.testing.assert_close(found[0], torch.tensor([[0.0, 0], [1, 1]]))


@torch.no_grad()
def test_maps_weigh_the_cells_of_their_lanes():
    sample = lane_sample(road_lanes(top=330), img_shape=test_ganet.SIZE)
    outputs = test_ganet.perfect_outputs(sample)
    head = test_ganet.build().head
    weights = head.lane_proximity(outputs, [sample.metainfo])
    assert set(weights) == set(GANetHead.head_names)
    points = outputs['kpt_hm'] > 2
    near = weights['pts_offset']
    assert near.shape == outputs['kpt_hm'].shape
    assert near[points].mean() > 0.8
    assert near[~points].mean() < 0.3
    empty = {**outputs, 'kpt_hm': torch.full_like(outputs['kpt_hm'], -9.0)}
    found = head.lane_proximity(empty, [sample.metainfo])
    assert found['kpt_hm'].sum() == 0


@torch.no_grad()
def test_conditional_maps_weigh_their_own_lane():
    sample = lane_sample(road_lanes(), img_shape=test_condlane.SIZE)
    outputs = test_condlane.perfect_outputs(sample)
    head = test_condlane.build().head
    outputs['params'] = torch.zeros(1, 4, *test_condlane.SEED_MAP)
    outputs['hm'].flatten(1)[0, outputs['seeds'][0, 0]] = -5.0
    weights = head.lane_proximity(outputs, [sample.metainfo])
    assert weights['range'].flatten().tolist() == [0, 1, 1, 1]
    assert weights['hm'].flatten()[outputs['seeds'][0]].tolist() == (
        pytest.approx([0, 1, 1, 1], abs=1e-3)
    )
    assert weights['mask'][0, 0].sum() == 0
    # The column that decoding reads.
    chosen = expected_column(outputs['mask']).long()[0, 1:, :, None]
    at_lane = weights['mask'][0, 1:].gather(-1, chosen)
    assert at_lane.min() > 0.8
    assert weights['mask'][0, 1:].mean() < 0.2


@torch.no_grad()
def test_anchors_weigh_by_their_lines():
    head = test_laneatt.build().head
    sample = lane_sample(road_lanes(), img_shape=test_laneatt.SIZE)
    outputs = test_laneatt.perfect_outputs(head, sample)
    weights = head.lane_proximity(outputs, [sample.metainfo])
    lanes = outputs['cls'][0, :, 1] > 0
    near = weights['cls']
    assert near.shape == (1, len(lanes), 1)
    assert near[0, lanes].min() > 0.99
    assert near[0, ~lanes].median() < 0.01
    assert torch.equal(weights['reg'], near)
