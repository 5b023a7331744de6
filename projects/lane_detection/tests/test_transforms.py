"""Lanes move exactly as their image does."""

import random
from itertools import pairwise

import cv2
import numpy as np
import pytest
import torch
from mmdet.registry import TRANSFORMS

from lane_detection.geometry import input_lanes, to_input
from lane_detection.transforms import (
    LaneAffine,
    LaneCrop,
    LaneFlip,
    LanePhotometric,
    LaneResize,
    LoadLaneAnnotations,
    LoadLaneImage,
    PackLaneInputs,
)
from lane_detection.transforms.augment import affine_matrix

LANES = [
    np.array([[300, 590], [500, 450], [700, 300]], dtype=np.float32),
    np.array([[1250, 590], [1050, 400], [1000, 290]], dtype=np.float32),
]


@pytest.fixture
def road(tmp_path):
    """Results of a data set: an image that shows LANES, white on black."""
    image = np.zeros((590, 1640, 3), dtype=np.uint8)
    for lane in LANES:
        cv2.polylines(
            image, [np.round(lane).astype(int)], False, (255, 255, 255), 13
        )
    path, lanes = tmp_path / 'a.jpg', tmp_path / 'a.lines.txt'
    cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, 98])
    lanes.write_text(
        '\n'.join(' '.join(f'{x} {y}' for x, y in lane) for lane in LANES)
    )
    return {
        'img_path': str(path),
        'img_id': 'a.jpg',
        'num_slots': 4,
        'label_shape': (590, 1640),
        'lane_format': 'culane',
        'lanes_file': str(lanes),
    }


def run(results, *steps):
    results = dict(results)
    for step in steps:
        results = step.transform(results)
    return results


def brightness(results):
    """Return the image's values along the lanes, off its border."""
    image = results['img'][..., 0]
    height, width = image.shape
    values = []
    for lane in results['gt_lanes']:
        for start, stop in pairwise(lane):
            points = start + np.linspace(0.1, 0.9, 20)[:, None] * (
                stop - start
            )
            cells = np.floor(points).astype(int)
            inside = ((cells >= 3) & (cells < (width - 3, height - 3))).all(1)
            values += image[cells[inside, 1], cells[inside, 0]].tolist()
    return np.array(values)


STEPS = {
    'nothing': [],
    'crop': [LaneCrop(top=250)],
    'both ends': [LaneCrop(top=200, bottom=500)],
    'resize': [LaneResize(size=(295, 700))],
    'flip': [LaneFlip(prob=1.0)],
    'affine': [LaneAffine(max_angle=10, max_shift=(0.1, 0.1))],
    'all': [
        LaneAffine(),
        LaneCrop(top=250),
        LaneResize(size=(170, 820)),
        LaneFlip(prob=1.0),
        LaneAffine(max_angle=3),
    ],
    'other order': [
        LaneFlip(prob=1.0),
        LaneResize(size=(295, 820)),
        LaneCrop(top=250),
    ],
}


@pytest.mark.parametrize('reduce', [1, 2])
@pytest.mark.parametrize('name', STEPS)
def test_lanes_stay_on_the_paint(road, name, reduce):
    for seed in range(4):
        random.seed(seed)
        results = run(
            road,
            LoadLaneImage(reduce=reduce),
            LoadLaneAnnotations(),
            *STEPS[name],
        )
        values = brightness(results)
        assert len(values) > 30
        assert np.percentile(values, 5) > 150
        assert results['img_shape'] == results['img'].shape[:2]
        # Most of the image is black: lanes elsewhere would not be bright.
        assert results['img'].mean() < 40


def test_training_lanes_equal_mapped_test_lanes(road):
    steps = [LaneCrop(top=250), LaneResize(size=(144, 400))]
    load, label = LoadLaneImage(), LoadLaneAnnotations()
    pack = PackLaneInputs()
    moved = run(road, load, label, *steps, pack)['data_samples']
    fixed = run(road, load, *steps, label, pack)['data_samples']
    assert moved.lane_frame == 'input'
    assert fixed.lane_frame == 'original'
    np.testing.assert_array_equal(fixed.gt_lanes.points[0], LANES[0])
    for first, second in zip(
        input_lanes(moved), input_lanes(fixed), strict=True
    ):
        np.testing.assert_allclose(first, second, atol=1e-3)
    assert moved.crop == fixed.crop == (0, 250, 1640, 590)


@pytest.mark.parametrize('reduce', [2, 4])
def test_reduced_images_show_the_same_frame(road, reduce):
    steps = [
        LoadLaneAnnotations(),
        LaneCrop(top=250),
        LaneResize(size=(80, 400)),
        PackLaneInputs(),
    ]
    whole = run(road, LoadLaneImage(), *steps)
    small = run(road, LoadLaneImage(reduce=reduce), *steps)
    first, second = whole['data_samples'], small['data_samples']
    assert first.ori_shape == second.ori_shape == (590, 1640)
    for a, b in zip(input_lanes(first), input_lanes(second), strict=True):
        np.testing.assert_allclose(a, b, atol=1.0)
    difference = (whole['inputs'].float() - small['inputs'].float()).abs()
    assert difference.mean() < 4


def test_input_frame_of_the_data_set(road):
    frame = dict(top=300, size=(64, 200), reduce=2)
    results = run(
        {**road, 'input_frame': frame},
        LoadLaneImage(),
        LaneCrop(),
        LaneResize(),
    )
    assert results['img'].shape == (64, 200, 3)
    assert results['crop'] == pytest.approx((0, 300, 1640, 590), abs=2)
    # A transform's own argument goes first.
    other = run(
        {**road, 'input_frame': frame},
        LoadLaneImage(reduce=1),
        LaneCrop(top=250),
        LaneResize(size=(32, 100)),
    )
    assert other['img'].shape == (32, 100, 3)
    assert other['crop'] == (0, 250, 1640, 590)


def test_crop_is_what_whole_pixels_say(road):
    results = run(road, LoadLaneImage(reduce=4), LaneCrop(top=251))
    rows = results['img'].shape[0]
    left, top, right, bottom = results['crop']
    corners = to_input(np.array([[left, top], [right, bottom]]), results)
    np.testing.assert_allclose(corners, [[0, 0], [410, rows]], atol=1e-6)
    assert abs(top - 251) < 4


def test_plain_loading_works_too(road):
    load = TRANSFORMS.build(dict(type='LoadImageFromFile'))
    results = run({**road, 'label_shape': None}, load, LaneCrop(top=250))
    assert results['crop'] == (0, 250, 1640, 590)
    assert results['ori_shape'] == (590, 1640)


@pytest.mark.parametrize(
    ('step', 'message'),
    [
        (LaneCrop(top=600), 'are empty or reach'),
        (LaneCrop(top=300, bottom=250), 'are empty or reach'),
        (LaneCrop(bottom=700), 'reach beyond'),
        (LaneCrop(top=[(720, 368)]), 'images of height 590'),
        (LaneResize(), 'has no size'),
    ],
)
def test_impossible_frames(road, step, message):
    with pytest.raises(ValueError, match=message):
        run(road, LoadLaneImage(), step)


def test_flip_swaps_slots_and_existence(road):
    results = run(
        {**road, 'existence': (1, 1, 0, 0)},
        LoadLaneImage(),
        LoadLaneAnnotations(),
    )
    results['gt_slots'] = np.array([0, -1])
    once = run(results, LaneFlip(prob=1.0))
    assert once['gt_slots'].tolist() == [3, -1]
    assert once['existence'] == (0, 0, 1, 1)
    assert once['flip'] is True
    np.testing.assert_allclose(
        once['gt_lanes'][0][:, 0], 1640 - LANES[0][:, 0]
    )
    twice = run(once, LaneFlip(prob=1.0))
    assert twice['flip'] is False
    assert twice['gt_slots'].tolist() == [0, -1]
    np.testing.assert_array_equal(twice['img'], results['img'])
    for before, after in zip(
        results['gt_lanes'], twice['gt_lanes'], strict=True
    ):
        np.testing.assert_allclose(after, before)
    never = run(results, LaneFlip(prob=0.0))
    assert never['flip'] is False
    assert never['gt_slots'].tolist() == [0, -1]


@pytest.mark.parametrize('step', [LaneFlip(prob=0.0), LaneAffine(prob=0.0)])
def test_images_are_not_moved_away_from_their_lanes(road, step):
    with pytest.raises(ValueError, match='load them before it'):
        run(
            road,
            LoadLaneImage(),
            LaneResize(size=(100, 300)),
            LoadLaneAnnotations(),
            step,
        )


def test_affine_matrix_turns_about_the_center():
    matrix = affine_matrix(shape=(100, 200), angle=90, scale=2, shift=(5, -3))
    center = matrix @ (100, 50, 1)
    np.testing.assert_allclose(center, (105, 47))
    # Clockwise: what lies right of the center comes to lie below it.
    np.testing.assert_allclose(matrix @ (110, 50, 1), (105, 67))
    with pytest.raises(ValueError, match='scale='):
        LaneAffine(scale=(1.2, 0.8))


def test_photometric_changes_colors_only(road):
    results = run(road, LoadLaneImage(), LoadLaneAnnotations())
    results['img'] = np.random.default_rng(0).integers(
        0, 255, (60, 80, 3), dtype=np.uint8
    )
    changed = []
    for seed in range(12):
        random.seed(seed)
        image = run(results, LanePhotometric())['img']
        assert image.dtype == np.uint8
        assert image.shape == (60, 80, 3)
        assert np.abs(image.astype(int) - results['img']).mean() < 90
        changed.append(image)
    assert len({image.tobytes() for image in changed}) == 12
    random.seed(3)
    again = run(results, LanePhotometric())['img']
    np.testing.assert_array_equal(again, changed[3])
    assert [lane.tolist() for lane in results['gt_lanes']] == [
        lane.tolist() for lane in LANES
    ]


def test_pack(road):
    packed = run(
        {**road, 'category': 'curve'},
        LoadLaneImage(),
        LoadLaneAnnotations(),
        PackLaneInputs(),
    )
    assert packed['inputs'].shape == (3, 590, 1640)
    assert packed['inputs'].dtype == torch.uint8
    assert packed['inputs'].is_contiguous()
    sample = packed['data_samples']
    assert sample.category == 'curve'
    assert sample.h_samples is None
    assert sample.flip is False
    assert sample.gt_lanes.slots.dtype == torch.int64


def test_pack_drops_what_is_not_in_the_input_any_more(road):
    results = run(road, LoadLaneImage(), LoadLaneAnnotations())
    results['gt_lanes'][0] = results['gt_lanes'][0] - (2000, 0)
    lanes = run(results, PackLaneInputs())['data_samples'].gt_lanes
    assert len(lanes) == 1
    assert lanes.slots.tolist() == [2]
    np.testing.assert_array_equal(lanes.points[0], LANES[1])


def test_pack_without_labels(road):
    sample = run(
        road, LoadLaneImage(), LaneResize(size=(10, 20)), PackLaneInputs()
    )['data_samples']
    assert 'gt_lanes' not in sample
    assert sample.img_shape == (10, 20)


def test_unreadable_images(road, tmp_path):
    with pytest.raises(FileNotFoundError, match='data_prefix'):
        run({**road, 'img_path': 'none.jpg'}, LoadLaneImage())
    for content in (b'', b'no image'):
        path = tmp_path / 'broken.jpg'
        path.write_bytes(content)
        with pytest.raises(ValueError, match='cannot be read as an image'):
            run({**road, 'img_path': str(path)}, LoadLaneImage())
    with pytest.raises(ValueError, match='reduce=3'):
        LoadLaneImage(reduce=3)
    with pytest.raises(ValueError, match='load them before'):
        run(road, LoadLaneImage(), LaneFlip(prob=1.0), LoadLaneAnnotations())
    with pytest.raises(KeyError, match='use a lane data set'):
        run({'img': np.zeros((5, 5, 3), np.uint8)}, LoadLaneAnnotations())


def test_calibration_takes_the_labels_out():
    from taskptq.engine.datasets import reads_labels

    assert reads_labels(dict(type='LoadLaneAnnotations'))
