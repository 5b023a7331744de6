"""Tests of RESA: shifts, decoder, dice loss."""

import pytest
import torch
from drawn_roads import (
    assert_proxies,
    assert_pure_decode,
    make_batch,
    overfit,
    prepare_w8a8,
    preprocessor,
    relative_error,
)

pytest.importorskip('mmdet')
SIZE = (32, 96)


def build(*, decoder):
    from mmdet.registry import MODELS

    import lane_detection.models  # noqa: F401

    head = {
        'type': 'SegmentationHead',
        'in_channels': 16,
        'feat_shape': (4, 12),
        'dropout': 0.0,
        'exist_from': 'features',
    }
    if decoder:
        head['decoder'] = {'type': 'BilateralUpsampler', 'in_channels': 16}
    model = MODELS.build(
        {
            'type': 'LaneDetector',
            'data_preprocessor': preprocessor(),
            'backbone': {
                'type': 'ResNet',
                'depth': 18,
                'base_channels': 8,
                'num_stages': 2,
                'strides': (1, 2),
                'dilations': (1, 1),
                'out_indices': (1,),
                'norm_eval': False,
            },
            'neck': {
                'type': 'RESANeck',
                'in_channels': 16,
                'channels': 16,
                'kernel_size': 5,
                'num_steps': 2,
            },
            'head': head,
            'train_cfg': {
                'lane_width': 80,
                'seg_loss': 'dice',
                'seg_weight': 2.0,
            },
            'test_cfg': {'blur': 3, 'window': 3},
        }
    )
    model.init_weights()
    return model


@pytest.mark.parametrize('size', [36, 100])
def test_shifts_reach_every_slice(size):
    """From one slice, all are reached by the steps of one direction."""
    from lane_detection.models.resa import shift_of

    for direction, sign in (('down', 1), ('up', -1)):
        shifts = [
            shift_of(direction, k, num_steps=4, size=size) for k in range(4)
        ]
        assert shifts == [sign * (size // n) for n in (16, 8, 4, 2)]


def test_neck_is_the_recurrence():
    from lane_detection.models import RESANeck

    neck = RESANeck(8, channels=8, num_steps=2, kernel_size=3).eval()
    neck.init_weights()
    x = torch.randn(1, 8, 8, 12)
    with torch.no_grad():
        expected = neck.reduce(x)
        for direction, sign, axis in (
            ('down', 1, 2),
            ('up', -1, 2),
            ('right', 1, 3),
            ('left', -1, 3),
        ):
            size = x.shape[axis]
            for k in range(2):
                index = (
                    torch.arange(size) + sign * (size // 2 ** (2 - k))
                ) % size
                message = (
                    neck.messages[direction][k]
                    .conv(expected.index_select(axis, index))
                    .relu()
                )
                expected = expected + 2.0 * message
        (found,) = neck((x,))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize('decoder', [False, True])
def test_shapes_and_proxy(decoder):
    model = build(decoder=decoder).eval()
    outputs = model(torch.randn(2, 3, *SIZE), mode='tensor')
    size = SIZE if decoder else (4, 12)
    assert outputs['seg'].shape == (2, 5, *size)
    assert outputs['exist'].shape == (2, 4)
    assert_proxies(model, outputs)


@pytest.mark.parametrize(
    ('decoder', 'lr', 'share'), [(False, 3e-3, 0.3), (True, 1e-2, 0.7)]
)
def test_overfit_and_decode(decoder, lr, share):
    model = build(decoder=decoder)
    batch = make_batch(SIZE)
    before, after = overfit(model, batch, steps=60, lr=lr)
    assert after < share * before
    assert_pure_decode(model, batch)


def test_dice_loss():
    from lane_detection.models.segmentation_head import dice_loss

    masks = torch.zeros(1, 6, 8, dtype=torch.long)
    masks[:, :, 3] = 2
    right = torch.nn.functional.one_hot(masks, 5).movedim(-1, 1) * 30.0
    assert dice_loss(right, masks) < 1e-3
    assert dice_loss(right.roll(1, dims=-1), masks) > 0.99
    # What is ignored counts nowhere.
    wrong = right.clone()
    wrong[..., 6] = right[..., 3]
    ignored = masks.clone()
    ignored[..., 6] = 255
    assert dice_loss(wrong, masks) > 0.2
    assert dice_loss(wrong, ignored) < 1e-3


def test_swap_sees_every_conv():
    model = build(decoder=True)
    report, before, after = prepare_w8a8(model, make_batch(SIZE))
    quantized = {row.name for row in report.rows if row.status == 'quantized'}
    for direction in ('down', 'up', 'right', 'left'):
        assert f'neck.messages.{direction}.1.conv' in quantized
    assert 'head.decoder.blocks.0.fine.0.conv' in quantized
    assert 'head.decoder.blocks.2.fine.2.layers.3.conv' in quantized
    assert report.count('float') == 0
    assert not [
        name
        for name, m in model.named_modules()
        if isinstance(m, torch.nn.BatchNorm2d)
    ]
    assert 0 < relative_error(before['seg'], after['seg']) < 0.2


def test_a_decoder_needs_existence_from_features():
    from lane_detection.models import SegmentationHead

    with pytest.raises(ValueError, match="choose exist_from='features'"):
        SegmentationHead(
            16,
            feat_shape=(4, 12),
            decoder={'type': 'BilateralUpsampler', 'in_channels': 16},
        )
