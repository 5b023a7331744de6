"""Tests of SCNN: messages, segmentation targets, loss and decoding."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from drawn_roads import (
    ROADS,
    assert_proxies,
    assert_pure_decode,
    assert_same_lanes,
    make_batch,
    make_samples,
    overfit,
    prepare_w8a8,
    preprocessor,
    relative_error,
    road_lanes,
)
from torch.nn import functional

pytest.importorskip('mmdet')
SIZE = (32, 96)


@pytest.fixture
def model():
    from mmdet.registry import MODELS

    import lane_detection.models  # noqa: F401

    model = MODELS.build(
        {
            'type': 'LaneDetector',
            'data_preprocessor': preprocessor(),
            'backbone': {
                'type': 'ResNet',
                'depth': 18,
                'base_channels': 8,
                'num_stages': 1,
                'strides': (1,),
                'dilations': (1,),
                'out_indices': (0,),
                'norm_eval': False,
            },
            'neck': {
                'type': 'SCNNNeck',
                'in_channels': 8,
                'channels': 16,
                'kernel_size': 5,
            },
            'head': {
                'type': 'SegmentationHead',
                'in_channels': 16,
                'feat_shape': (8, 24),
                'dropout': 0.0,
            },
            'train_cfg': {'lane_width': 40},
            'test_cfg': {'blur': 3, 'window': 3},
        }
    )
    model.init_weights()
    return model


def head_of(size, **test_cfg):
    from lane_detection.models import SegmentationHead

    return SegmentationHead(
        8, feat_shape=(size[0] // 8, size[1] // 8), test_cfg=test_cfg
    )


@pytest.mark.parametrize('direction', ['down', 'up', 'right', 'left'])
def test_slice_conv_is_the_recurrence(direction):
    from lane_detection.models import SliceConv

    conv = SliceConv(4, direction=direction, kernel_size=3)
    x = torch.randn(2, 4, 5, 6)
    axis = 2 if direction in ('down', 'up') else 3
    order = list(range(x.shape[axis]))
    if direction in ('up', 'left'):
        order.reverse()
    expected = x.clone()
    padding = (0, 1) if axis == 2 else (1, 0)
    for before, i in pairwise(order):
        message = functional.conv2d(
            expected.narrow(axis, before, 1), conv.conv.weight, padding=padding
        ).relu()
        expected.narrow(axis, i, 1).add_(message)
    with torch.no_grad():
        torch.testing.assert_close(conv(x), expected.detach())


def test_slice_conv_keeps_its_input_and_starts_small():
    from lane_detection.models import SliceConv

    conv = SliceConv(128, direction='down')
    bound = (2 / (128 * 9 * 5)) ** 0.5
    weight = conv.conv.weight
    assert bound * 0.9 < weight.abs().max() <= bound
    x = torch.randn(1, 128, 36, 10)
    kept = x.clone()
    assert conv(x).isfinite().all()
    assert torch.equal(x, kept)


def test_slice_conv_errors():
    from lane_detection.models import SliceConv

    with pytest.raises(ValueError, match="direction='north'"):
        SliceConv(4, direction='north')
    with pytest.raises(ValueError, match='kernel_size=4'):
        SliceConv(4, direction='up', kernel_size=4)


def test_targets():
    from lane_detection.models.segmentation_targets import (
        segmentation_targets,
    )

    samples = make_samples((68, 328))
    samples[1].gt_lanes.slots = torch.tensor([-1, 7])
    masks, exist = segmentation_targets(samples, num_slots=4, lane_width=16)
    assert masks.shape == (2, 68, 328)
    assert masks[0].unique().tolist() == [0, 1, 2, 3, 4]
    assert masks[1].unique().tolist() == [0, 255]
    assert exist.tolist() == [[1] * 4, [0] * 4]
    # From left to right in a low row, 16 / 5 pixels wide across the lane.
    row = masks[0, -5]
    centers = [float((row == k).nonzero().float().mean()) for k in (1, 2, 3)]
    assert centers == sorted(centers)
    assert 2 <= int((row == 2).sum()) <= 8


def test_targets_need_slots():
    from lane_detection.models.segmentation_targets import (
        segmentation_targets,
    )

    samples = make_samples(SIZE)
    del samples[0].gt_lanes.slots
    with pytest.raises(ValueError, match='has no slots'):
        segmentation_targets(samples, num_slots=4, lane_width=16)


@pytest.mark.parametrize('size', [(288, 800), (144, 400)])
@pytest.mark.parametrize('stride', [1, 8])
def test_round_trip(size, stride):
    """Targets, turned into logits of the head's map, decode to the lanes."""
    from lane_detection.models.segmentation_targets import (
        segmentation_targets,
    )

    samples = make_samples(size)
    # About as wide as a cell, so that a map of cells can hold it.
    pixels = 16 if size[1] == 800 else 10
    width = 16 if stride == 1 else pixels * 1640 / size[1]
    masks, exist = segmentation_targets(samples, num_slots=4, lane_width=width)
    classes = functional.one_hot(masks, 5).movedim(-1, 1).float()
    if stride > 1:
        classes = functional.avg_pool2d(
            classes, 9, stride=1, padding=4, count_include_pad=False
        )
        classes = functional.interpolate(
            classes,
            size=(size[0] // 8, size[1] // 8),
            mode='bilinear',
            align_corners=True,
        )
    outputs = {'seg': classes.clamp(min=1e-4).log(), 'exist': exist * 20 - 10}
    head = head_of(
        size, row_step=10, blur=3 if stride == 1 else 9, score_thr=0.3
    )
    found = head.decode(outputs, [s.metainfo for s in samples])
    for instances, road in zip(found, ROADS, strict=True):
        assert_same_lanes(instances, road_lanes(road), iou=0.9)


def test_decode_of_nothing():
    head = head_of(SIZE)
    outputs = {
        'seg': torch.zeros(2, 5, 4, 12),
        'exist': torch.tensor([[-5.0] * 4, [5.0] * 4]),
    }
    outputs['seg'][:, 0] = 9
    metas = [sample.metainfo for sample in make_samples(SIZE)]
    for instances in head.decode(outputs, metas):
        assert instances.points == []
        assert instances.scores.shape == (0,)


def test_overfit_and_decode(model):
    batch = make_batch(SIZE)
    before, after = overfit(model, batch, steps=60, lr=5e-3)
    assert after < 0.4 * before
    assert_pure_decode(model, batch)


def test_loss_ignores_unknown_lanes(model):
    from drawn_roads import total_loss

    model.eval()
    batch = make_batch(SIZE)
    for sample in batch['data_samples']:
        sample.gt_lanes.slots[:] = -1
    _, losses = total_loss(model, batch)
    assert all(torch.isfinite(value) for value in losses.values())


def test_proxy(model):
    inputs = torch.randn(2, 3, *SIZE)
    outputs = model(inputs, mode='tensor')
    assert_proxies(model, outputs)
    proxy = model.head.foreground_proxy(outputs)['seg']
    lanes = outputs['seg'].softmax(dim=1)[:, 1:].sum(dim=1, keepdim=True)
    torch.testing.assert_close(proxy, lanes.detach(), atol=1e-5, rtol=1e-4)
    assert proxy.std() > 0


def test_swap_sees_every_conv(model):
    batch = make_batch(SIZE)
    report, before, after = prepare_w8a8(model, batch)
    rows = {row.name: row for row in report.rows}
    for i in range(4):
        assert rows[f'neck.passes.{i}.conv'].status == 'quantized'
    for name in (
        'neck.reduce.conv',
        'head.conv_seg',
        'head.fc_hidden',
        'head.fc_cls',
        'backbone.conv1',
    ):
        assert rows[name].status == 'quantized'
    assert rows['head.conv_seg'].reason == 'edge layer'
    assert rows['head.fc_cls'].reason == 'edge layer'
    assert report.count('float') == 0
    assert 'neck.reduce.bn' in report.folded
    assert 0 < relative_error(before['seg'], after['seg']) < 0.1


def test_each_pass_is_one_block(model):
    """A conv that is called for each slice must not be cut out of its pass."""
    from taskptq.prepare import split_blocks
    from taskptq.reconstruction import ReconstructionConfig, reconstruct

    batch = make_batch(SIZE)
    prepare_w8a8(model, batch)
    names = [unit.name for unit in split_blocks(model)]
    assert [n for n in names if 'passes' in n] == [
        f'neck.passes.{i}' for i in range(4)
    ]
    inputs = model.data_preprocessor(batch, False)['inputs']
    report = reconstruct(
        model,
        [inputs],
        ReconstructionConfig(steps=2, batch_size=2),
        forward=lambda m, x: m(x, mode='tensor'),
        progress=False,
    )
    assert report.uncalled == []
    assert {unit.name for unit in report.units} == set(names)


def test_head_errors(model):
    from lane_detection.models import SegmentationHead

    with pytest.raises(ValueError, match='feat_shape'):
        model(torch.zeros(1, 3, 64, 96), mode='tensor')
    with pytest.raises(ValueError, match="exist_from='both'"):
        SegmentationHead(8, feat_shape=(4, 12), exist_from='both')
    with pytest.raises(ValueError, match='blur=4'):
        head_of(SIZE, blur=4)
    with pytest.raises(ValueError, match="seg_loss='focal'"):
        SegmentationHead(
            8, feat_shape=(4, 12), train_cfg={'seg_loss': 'focal'}
        )


def test_drawing_far_outside_is_safe():
    from lane_detection.models.segmentation_targets import draw_lanes

    lane = np.array([[1e9, 1e9], [5, 5]], np.float32)
    mask = draw_lanes([lane], classes=[3], size=(10, 10), width=2)
    assert set(np.unique(mask)) == {0, 3}
