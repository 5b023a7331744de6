"""The one mapping between original image and input, and the slots."""

import glob

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.structures import InstanceData

from lane_detection.datasets.lane_files import read_culane
from lane_detection.geometry import (
    assign_slots,
    bottom_up,
    bottom_x,
    existence,
    input_lanes,
    is_visible,
    order_slots,
    original_lanes,
    resample,
    to_input,
    to_original,
)
from lane_detection.structures import LaneDataSample

META = {'crop': (0, 250, 1640, 590), 'img_shape': (144, 400)}
SHAPE = (590, 1640)


def line(bottom, top, *, y0=590.0, y1=300.0):
    y = np.linspace(y0, y1, 30)
    x = np.interp(y, [y1, y0], [top, bottom])
    return np.stack([x, y], axis=1).astype(np.float32)


def sample_of(lanes, frame):
    sample = LaneDataSample(metainfo={**META, 'lane_frame': frame})
    sample.gt_lanes = InstanceData(
        points=lanes, slots=torch.full((len(lanes),), -1)
    )
    return sample


def test_corners_of_the_crop_are_corners_of_the_input():
    corners = np.array([[0, 250], [1640, 590]], dtype=np.float32)
    expected = [[0, 0], [400, 144]]
    np.testing.assert_allclose(to_input(corners, META), expected)
    moved = to_input(torch.from_numpy(corners), META)
    torch.testing.assert_close(moved, torch.tensor(expected).float())


@settings(max_examples=50, deadline=None)
@given(
    left=st.floats(0, 500),
    top=st.floats(0, 400),
    width=st.floats(50, 2000),
    height=st.floats(50, 900),
    shape=st.tuples(st.integers(16, 400), st.integers(16, 900)),
    seed=st.integers(0, 999),
)
def test_round_trip(left, top, width, height, shape, seed):
    meta = {
        'crop': (left, top, left + width, top + height),
        'img_shape': shape,
    }
    points = np.random.default_rng(seed).uniform(-300, 2500, (7, 2))
    back = to_original(to_input(points, meta), meta)
    np.testing.assert_allclose(back, points, atol=1e-6)
    batch = torch.from_numpy(points).view(1, 7, 2)
    torch.testing.assert_close(to_input(to_original(batch, meta), meta), batch)


def test_types_stay():
    points = np.zeros((0, 2), dtype=np.float32)
    assert to_input(points, META).dtype == np.float32
    assert to_input(points, META).shape == (0, 2)
    tensor = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    moved = to_original(tensor, META)
    assert moved.dtype == torch.float64
    assert moved.requires_grad


def test_unusable_metainfo():
    points = np.zeros((1, 2))
    with pytest.raises(KeyError, match='no crop'):
        to_input(points, {'img_shape': (4, 4)})
    with pytest.raises(ValueError, match='is empty'):
        to_input(points, {'crop': (0, 9, 5, 9), 'img_shape': (4, 4)})


def test_lanes_of_a_sample_in_either_frame():
    lane = line(400, 700)
    moved = to_input(lane, META)
    np.testing.assert_allclose(
        input_lanes(sample_of([lane], 'original'))[0], moved
    )
    np.testing.assert_allclose(
        input_lanes(sample_of([moved], 'input'))[0], moved
    )
    np.testing.assert_allclose(
        original_lanes(sample_of([lane], 'original'))[0], lane
    )
    with pytest.raises(ValueError, match='load them after LaneResize'):
        original_lanes(sample_of([moved], 'input'))


def test_bottom_up_turns_and_drops_repeated_points():
    points = [[5, 10], [5, 10], [6, 20], [6, 20], [7, 30]]
    ordered = bottom_up(np.array(points))
    assert ordered.tolist() == [[7, 30], [6, 20], [5, 10]]
    np.testing.assert_array_equal(bottom_up(ordered), ordered)
    assert len(bottom_up(np.array([[3, 3], [3, 3]]))) == 1
    assert bottom_up(np.zeros((0, 2))).shape == (0, 2)


def test_resample_is_even_and_keeps_the_ends():
    corner = np.array([[0, 30], [0, 0], [60, 0]], dtype=np.float32)
    dense = resample(corner, num_points=10)
    np.testing.assert_allclose(dense[[0, -1]], corner[[0, -1]])
    steps = np.hypot(*np.diff(dense, axis=0).T)
    np.testing.assert_allclose(steps, 10, rtol=1e-5)
    assert resample(corner[:1], num_points=3).tolist() == [[0, 30]] * 3


@pytest.mark.parametrize(
    ('points', 'visible'),
    [
        ([[10, 90], [20, 10]], True),
        # Both ends outside, the middle inside.
        ([[-50, 50], [150, 50]], True),
        ([[-50, 90], [-10, 10]], False),
        ([[101, 90], [140, 10]], False),
        ([[50, 50]], False),
        ([], False),
    ],
)
def test_is_visible(points, visible):
    lane = np.array(points, dtype=np.float32).reshape(-1, 2)
    assert is_visible(lane, shape=(100, 100)) is visible


def test_bottom_x_prolongs_the_lowest_part():
    lane = line(300, 600, y0=450.0)
    # 300 px sideways in 150 rows.
    assert bottom_x(lane, height=590) == pytest.approx(300 - 140 * 2, abs=1)
    assert bottom_x(lane[:1], height=590) == 300
    flat = np.array([[10, 50], [90, 50]], dtype=np.float32)
    assert bottom_x(flat, height=590) == 10


@pytest.mark.parametrize(
    ('bottoms', 'slots'),
    [
        ([-400, 300, 1200, 2000], [0, 1, 2, 3]),
        ([1200, 300, 2000, -400], [2, 1, 3, 0]),
        ([300], [1]),
        ([1200, 1500], [2, 3]),
        ([-900, -400, 300], [-1, 0, 1]),
        ([], []),
    ],
)
def test_assign_slots(bottoms, slots):
    lanes = [line(bottom, 800) for bottom in bottoms]
    assert assign_slots(lanes, shape=SHAPE).tolist() == slots


@settings(max_examples=30, deadline=None)
# Whole pixels: which of two lanes in one place is the inner one is nobody's
# to say.
@given(
    st.lists(st.integers(-900, 2500), max_size=6, unique=True),
    st.sampled_from([2, 4, 6]),
)
def test_slots_of_the_mirror_image_are_mirrored(bottoms, num_slots):
    bottoms = [b for b in bottoms if abs(b - 820) > 1]
    lanes = [line(bottom, 820) for bottom in bottoms]
    mirrored = [
        np.stack([1640 - x, y], axis=1) for x, y in (lane.T for lane in lanes)
    ]
    slots = assign_slots(lanes, shape=SHAPE, num_slots=num_slots)
    other = assign_slots(mirrored, shape=SHAPE, num_slots=num_slots)
    turned = np.where(slots < 0, -1, num_slots - 1 - slots)
    assert other.tolist() == turned.tolist()
    taken = slots[slots >= 0]
    assert len(set(taken.tolist())) == len(taken)


def test_odd_number_of_slots():
    with pytest.raises(ValueError, match='num_slots=5'):
        assign_slots([], shape=SHAPE, num_slots=5)


def test_flags_of_the_data_set_give_slots():
    lanes = [line(1200, 850), line(-300, 780)]
    slots = order_slots(lanes, (1, 0, 1, 0), height=590)
    assert slots.tolist() == [2, 0]
    # The flags count another number of lanes: they say nothing.
    assert order_slots(lanes, (1, 1, 1, 0), height=590) is None


def test_existence():
    assert existence([2, -1, 0]).tolist() == [1, 0, 1, 0]
    assert existence(torch.tensor([5]), num_slots=6).tolist() == [0] * 5 + [1]
    assert existence([]).tolist() == [0] * 4


@pytest.mark.data('culane_mini')
def test_every_lane_of_culane_mini_has_a_slot_in_order():
    files = glob.glob('data/culane_mini/*/*/*.lines.txt')  # noqa: PTH207
    assert len(files) >= 170
    for name in files:
        lanes = read_culane(name)
        slots = assign_slots(lanes, shape=SHAPE)
        assert (slots >= 0).all()
        order = np.argsort([bottom_x(lane, height=590) for lane in lanes])
        assert (np.diff(slots[order]) > 0).all()
