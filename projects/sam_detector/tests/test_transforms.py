import math
import random

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmdet.registry import TRANSFORMS
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from segment_anything.utils.transforms import ResizeLongestSide

from sam_detector.transforms import (
    SAMViews,
    ZoomCrop,
    mask_box,
    stack_views,
    tile_origins,
)


@settings(deadline=None, max_examples=80)
@given(
    length=st.integers(1, 3000),
    tile=st.integers(8, 700),
    overlap=st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.75]),
)
def test_tiles_cover_a_side(length, tile, overlap):
    origins = tile_origins(length, tile=tile, overlap=overlap)
    assert origins[0] == 0
    if length <= tile:
        assert origins == [0]
        return
    assert origins[-1] + tile == length
    steps = np.diff(origins)
    # No gap, the overlap asked for up to a rounded pixel, and evenly.
    assert steps.max() <= tile
    assert steps.max() < tile * (1 - overlap) + 1
    assert steps.max() - steps.min() <= 1
    if len(origins) > 2:  # one tile fewer would not do
        step = (length - tile) / (len(origins) - 2)
        assert step > tile * (1 - overlap) - 1e-6


def test_tile_origins_by_hand():
    assert tile_origins(256, tile=128, overlap=0.25) == [0, 64, 128]
    assert tile_origins(320, tile=128, overlap=0.25) == [0, 96, 192]
    assert tile_origins(256, tile=128, overlap=0.0) == [0, 128]
    assert tile_origins(129, tile=128, overlap=0.25) == [0, 1]


def noise(height, width):
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_the_whole_image_is_one_view():
    image = noise(40, 100)
    found = SAMViews(image_size=64).transform({'img': image.copy()})
    assert found['sam_views'].tolist() == [[0, 0, 100, 40]]
    assert found['sam_view_sizes'].tolist() == [[26, 64]]
    assert len(found['sam_imgs']) == 1
    expected = cv2.resize(
        image[..., ::-1], (64, 26), interpolation=cv2.INTER_AREA
    )
    assert np.array_equal(found['sam_imgs'][0], expected)
    assert np.array_equal(found['img'], image)


def test_views_are_rgb():
    image = np.zeros((8, 8, 3), np.uint8)
    image[:] = (10, 20, 30)
    view = SAMViews(image_size=16).transform({'img': image})['sam_imgs'][0]
    assert view.shape == (16, 16, 3)
    assert (view == (30, 20, 10)).all()


@pytest.mark.parametrize(
    'shape',
    [
        (480, 640),
        (427, 640),
        (1365, 2048),
        (333, 500),
        (640, 427),
        (20, 20),
        (683, 1024),
        (1, 700),
    ],
)
def test_sizes_are_those_of_segment_anything(shape):
    image = np.zeros((*shape, 3), np.uint8)
    for side in (64, 256, 1024):
        expected = ResizeLongestSide.get_preprocess_shape(*shape, side)
        found = SAMViews(image_size=side).resize(image).shape[:2]
        # A row is left even where none would be.
        assert found == tuple(max(length, 1) for length in expected)


def test_tiles_are_magnified():
    image = noise(80, 100)
    found = SAMViews(image_size=64, zoom=2.0).transform({'img': image})
    regions = found['sam_views'].astype(int).tolist()
    assert regions[-1] == [0, 0, 100, 80]
    assert regions[:-1] == [
        [x, y, 32, 32] for y in (0, 24, 48) for x in (0, 23, 45, 68)
    ]
    assert found['sam_views'].dtype == np.float32
    assert found['sam_view_sizes'].tolist() == [[64, 64]] * 12 + [[51, 64]]
    x, y = regions[5][:2]
    tile = image[y : y + 32, x : x + 32, ::-1]
    expected = cv2.resize(tile, (64, 64), interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(found['sam_imgs'][5], expected)


def test_tiles_of_a_flat_image_are_no_squares():
    found = SAMViews(image_size=64, zoom=1.0).transform({'img': noise(40, 96)})
    assert found['sam_views'].tolist() == [
        [0, 0, 64, 40],
        [32, 0, 64, 40],
        [0, 0, 96, 40],
    ]
    assert found['sam_view_sizes'].tolist() == [[40, 64], [40, 64], [27, 64]]


def test_a_small_image_needs_no_tiles():
    found = SAMViews(image_size=64, zoom=2.0).transform({'img': noise(30, 32)})
    assert found['sam_views'].tolist() == [[0, 0, 32, 30]]
    assert found['sam_view_sizes'].tolist() == [[60, 64]]


@pytest.mark.parametrize(
    ('kind', 'options', 'message'),
    [
        ('SAMViews', {'overlap': 1.0}, r'overlap=1.0 must lie in \[0, 1\)'),
        ('SAMViews', {'zoom': 0.0}, 'zoom=0.0 must be positive and at most'),
        ('SAMViews', {'zoom': 2000.0}, 'at most image_size=1024'),
        ('ZoomCrop', {'image_size': 65}, 'image_size=65 must be even'),
        (
            'ZoomCrop',
            {'zoom': (2.0, 1.0)},
            r'zoom=\(2.0, 1.0\) must be the lea',
        ),
        ('ZoomCrop', {'zoom': (0.0, 1.0)}, 'positive'),
        ('ZoomCrop', {'min_pixels': 0}, 'min_pixels=0 must be at least 1'),
    ],
)
def test_impossible_settings_are_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        TRANSFORMS.build({'type': kind, **options})


def annotated(height=120, width=150, count=6):
    """An image whose objects are white ellipses."""
    generator = np.random.default_rng(1)
    image = np.zeros((height, width, 3), np.uint8)
    masks = np.zeros((count, height, width), np.uint8)
    for mask in masks:
        center = [int(generator.integers(0, side)) for side in (width, height)]
        axes = [int(value) for value in generator.integers(4, 16, 2)]
        cv2.ellipse(mask, center, axes, 0, 0, 360, 1, -1)
        image[mask > 0] = 255
    boxes = torch.tensor(np.array([mask_box(mask) for mask in masks]))
    return {
        'img': image,
        'gt_masks': BitmapMasks(masks, height, width),
        'gt_bboxes': HorizontalBoxes(boxes),
        'gt_bboxes_labels': np.arange(count) + 10,
        'gt_ignore_flags': np.arange(count) == 3,
    }


def test_a_crop_keeps_annotations_where_the_image_has_them():
    crop, seen = ZoomCrop(image_size=64, zoom=(1.2, 2.5)), set()
    for number in range(40):
        random.seed(number)
        before = annotated()
        whole = before['gt_masks'].to_ndarray()
        found = crop.transform(annotated())
        ((x, y, side, height),) = found['sam_views'].astype(int).tolist()
        assert side == height
        assert 64 / 2.5 - 1 < side < 64 / 1.2 + 1
        assert min(x, y) >= 0
        assert x + side <= 150
        assert y + side <= 120
        assert found['sam_view_sizes'].tolist() == [[64, 64]]
        masks = found['gt_masks'].to_ndarray()
        assert masks.shape[1:] == (32, 32)
        labels = found['gt_bboxes_labels']
        assert len(masks) == len(labels) == len(found['gt_bboxes'])
        assert found['gt_ignore_flags'].tolist() == [
            label == 13 for label in labels
        ]
        # Any two of them tell the same place.
        boxes = found['gt_bboxes'].tensor
        assert boxes.tolist() == [
            (mask_box(mask) * 2).tolist() for mask in masks
        ]
        scale = 64 / side
        for mask, box, label in zip(masks, boxes, labels, strict=True):
            part = whole[label - 10, y : y + side, x : x + side]
            assert part.sum() >= 0.6 * whole[label - 10].sum()
            assert mask.sum() >= 12
            expected = torch.tensor(mask_box(part)) * scale
            assert (box - expected).abs().max() <= 2 + scale
        view = cv2.resize(
            found['sam_imgs'][0], (32, 32), interpolation=cv2.INTER_AREA
        )
        assert (view[masks.any(axis=0)] > 60).all()
        seen.update(labels.tolist())
    assert len(seen) >= 4


def test_dropped_objects_are_those_mostly_outside():
    kept = ZoomCrop(image_size=64, zoom=(1.0, 1.0), min_visible=0.6)
    masks = np.zeros((4, 64, 64), np.uint8)
    masks[0, 10:20, 10:20] = 1
    masks[1, 0:10, 56:64] = 1  # leaves to the right, see below
    masks[2, 40:42, 40:42] = 1  # 4 pixels: 1 in the halved view
    cropped = masks.copy()
    cropped[1, :, 60:] = 0
    results = {'gt_bboxes_labels': np.array([1, 2, 3, 4])}
    kept.crop_objects(results, masks, cropped)
    assert results['gt_bboxes_labels'].tolist() == [1]
    assert results['gt_bboxes'].tensor.tolist() == [[10, 10, 20, 20]]
    assert results['gt_ignore_flags'].tolist() == [False]
    kept.min_visible, kept.min_pixels = 0.5, 1
    results = {'gt_bboxes_labels': np.array([1, 2, 3, 4])}
    kept.crop_objects(results, masks, cropped)
    assert results['gt_bboxes_labels'].tolist() == [1, 2, 3]
    assert results['gt_bboxes'].tensor.tolist()[1] == [56, 0, 60, 10]


def test_a_crop_follows_the_seed():
    crop = ZoomCrop(image_size=64)
    places = []
    for number in (1, 1, 2):
        random.seed(number)
        places.append(crop.transform(annotated())['sam_views'].tolist())
    assert places[0] == places[1] != places[2]


@pytest.mark.parametrize(
    'masks', [np.zeros((0, 20, 30), np.uint8), np.zeros((2, 20, 30), np.uint8)]
)
def test_a_crop_without_objects(masks):
    """And of an image that is smaller than the crop."""
    image = noise(20, 30)
    found = ZoomCrop(image_size=64, zoom=(1.0, 1.0)).transform(
        {
            'img': image,
            'gt_masks': BitmapMasks(masks, 20, 30),
            'gt_bboxes_labels': np.zeros(len(masks), np.int64),
        }
    )
    assert found['sam_views'][0, 2:].tolist() == [20, 20]
    assert found['sam_imgs'][0].shape == (64, 64, 3)
    assert found['gt_masks'].to_ndarray().shape == (0, 32, 32)
    assert found['gt_bboxes'].tensor.shape == (0, 4)
    assert found['gt_bboxes_labels'].shape == (0,)
    assert found['gt_ignore_flags'].shape == (0,)


def test_packed_views():
    results = annotated()
    results |= {
        'img_id': 7,
        'ori_shape': (120, 150),
        'img_shape': (120, 150),
        'scale_factor': (1.0, 1.0),
    }
    results = SAMViews(image_size=64, zoom=1.0).transform(results)
    packed = TRANSFORMS.build({'type': 'PackSAMInputs', 'image_size': 64})(
        results
    )
    count = len(results['sam_views'])
    views = packed['inputs']['sam']
    assert views.shape == (count, 3, 64, 64)
    assert views.dtype == torch.uint8
    assert packed['inputs']['img'].shape == (3, 120, 150)
    data = packed['data_samples']
    assert data.metainfo['sam_views'].shape == (count, 4)
    assert data.metainfo['sam_view_sizes'].shape == (count, 2)
    assert data.img_id == 7
    assert data.gt_instances.labels.tolist() == [10, 11, 12, 14, 15]
    assert data.ignored_instances.labels.tolist() == [13]
    height, width = data.sam_view_sizes[-1]
    assert (height, width) == (math.floor(120 * 64 / 150 + 0.5), 64)
    last = torch.from_numpy(results['sam_imgs'][-1]).permute(2, 0, 1)
    assert torch.equal(views[-1, :, :height], last)
    assert (views[-1, :, height:] == 0).all()


def test_packed_training_view():
    packed = TRANSFORMS.build(
        {'type': 'PackSAMInputs', 'image_size': 64, 'with_detector': False}
    )(ZoomCrop(image_size=64).transform(annotated()))
    assert list(packed['inputs']) == ['sam']
    assert packed['inputs']['sam'].shape == (1, 3, 64, 64)
    instances = packed['data_samples'].gt_instances
    assert instances.bboxes.tensor.dtype == torch.float32
    assert instances.masks.to_ndarray().shape == (len(instances), 32, 32)


def test_views_larger_than_the_frame_are_refused():
    with pytest.raises(
        ValueError,
        match='70x64 pixels does not fit image_si'
        'ze=64: give PackSAMInputs the image_size',
    ):
        stack_views([np.zeros((64, 70, 3), np.uint8)], 64)
