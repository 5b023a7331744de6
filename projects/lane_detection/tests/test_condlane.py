"""CondLaneNet: seeds, dynamic maps, targets, loss, quantization."""

import numpy as np
import pytest
import torch
from head_checks import check_decode_is_pure, check_proxy
from torch import nn

from lane_detection.metrics.culane_f1 import lane_iou
from lane_detection.models.condlane_head import CondLaneHead
from lane_detection.models.condlane_maps import (
    dynamic_maps,
    expected_column,
    heatmap_peaks,
    with_coordinates,
)
from lane_detection.models.condlane_targets import encode_lanes
from lane_detection.testing import (
    lane_sample,
    road_lanes,
    tiny_backbone,
    tiny_detector,
    tiny_image,
)
from taskptq.calibration import calibrate
from taskptq.prepare import QConfig, prepare

SIZE = (144, 400)
MAP = (18, 50)
SEED_MAP = (9, 25)


def build(**test_cfg):
    return tiny_detector(
        {
            'type': 'CondLaneHead',
            'in_channels': 8,
            'img_size': SIZE,
            'mask_channels': 8,
            'num_mask_convs': 2,
            'num_seeds': 5,
        },
        backbone=tiny_backbone(),
        neck={
            'type': 'TransFPN',
            'in_channels': [16, 32, 64],
            'out_channels': 8,
            'key_channels': 4,
            'num_outs': 2,
        },
        train_cfg={'radius': 2},
        test_cfg={'score_thr': 0.5, 'seed_distance': 1.5, **test_cfg},
    )


def targets_of(sample):
    return encode_lanes(
        sample,
        size=MAP,
        stride=8,
        seed_size=SEED_MAP,
        seed_stride=16,
        radius=2,
    )


def perfect_outputs(sample):
    targets = targets_of(sample)
    columns = torch.arange(MAP[1])
    xs = torch.from_numpy(targets.xs)
    present = xs.isfinite()
    # Beyond its end a lane goes on, as a network would have it.
    longer = torch.from_numpy(
        targets_of(lane_sample(road_lanes(top=250), img_shape=SIZE)).xs
    )
    xs = xs.where(present, longer)
    distance = xs[..., None] - columns
    return {
        'hm': torch.from_numpy(targets.heatmap)
        .clamp(1e-3, 1 - 1e-3)
        .logit()[None, None],
        'mask': -10 * distance.abs()[None],
        'reg': distance[None],
        'range': torch.stack([~present, present], dim=1).float()[None],
        'seeds': torch.from_numpy(targets.seeds)[None],
    }


def test_shapes():
    model = build().eval()
    outputs = model(torch.rand(2, 3, *SIZE), mode='tensor')
    shapes = {name: tuple(value.shape) for name, value in outputs.items()}
    assert shapes == {
        'hm': (2, 1, *SEED_MAP),
        'params': (2, 22, *SEED_MAP),
        'mask': (2, 5, *MAP),
        'reg': (2, 5, *MAP),
        'range': (2, 5, 2, 18),
        'seeds': (2, 5),
    }
    assert tuple(outputs)[:-1] == model.head_names
    with torch.device('meta'):
        paper = CondLaneHead(img_size=(320, 800))
    assert paper.params.conv_reg.out_channels == 134
    assert paper.row_range.fc_hidden.in_features == 100


def test_seeds_are_the_highest_peaks():
    heatmap = torch.zeros(1, 1, 5, 6)
    heatmap[0, 0, 1, 1], heatmap[0, 0, 1, 2] = 3, 2.9
    heatmap[0, 0, 4, 5] = 1
    seeds = heatmap_peaks(heatmap, count=2)
    assert seeds.tolist() == [[1 * 6 + 1, 4 * 6 + 5]]
    ramp = torch.arange(30.0).view(1, 1, 5, 6)
    assert heatmap_peaks(ramp, count=3).tolist() == [[29, 28, 27]]


def test_given_seeds_are_used():
    """Two models compare, seed by seed."""
    model = build().eval()
    inputs = torch.rand(1, 3, *SIZE)
    own = model(inputs, mode='tensor')
    turned = own['seeds'].flip(1)
    other = model(inputs, mode='tensor', seeds=turned)
    assert torch.equal(other['seeds'], turned)
    for name in ('mask', 'reg', 'range'):
        assert torch.allclose(other[name], own[name].flip(1), atol=1e-5)


def test_dynamic_maps_are_convolutions():
    features = with_coordinates(torch.rand(2, 3, 4, 6))
    params = torch.rand(2, 7, 2 * 6)
    mask, reg = dynamic_maps(features, params)
    assert mask.shape == reg.shape == (2, 7, 4, 6)
    one = params[1, 4]
    expected = torch.einsum('c,chw->hw', one[:5], features[1]) + one[10]
    assert torch.allclose(mask[1, 4], expected - 2.19, atol=1e-5)
    expected = torch.einsum('c,chw->hw', one[5:10], features[1]) + one[11]
    assert torch.allclose(reg[1, 4], expected, atol=1e-5)
    assert features[0, 3, :, 0].tolist() == pytest.approx(
        [-1, -1 / 3, 1 / 3, 1]
    )
    assert features[0, 4, 2].tolist() == pytest.approx(
        [-1, -0.6, -0.2, 0.2, 0.6, 1]
    )


def test_targets():
    lanes = road_lanes()
    targets = targets_of(lane_sample(lanes, img_shape=SIZE))
    assert targets.heatmap.shape == SEED_MAP
    assert (
        sorted(targets.seeds.tolist())
        == np.flatnonzero(targets.heatmap == 1).tolist()
    )
    assert (targets.seeds // SEED_MAP[1] == SEED_MAP[0] - 1).all()
    assert len(targets.xs) == 4
    # Lanes end at row 300 of 250 to 590: at 21 of the input's 144.
    assert np.isnan(targets.xs[:, :3]).all()
    assert np.isfinite(targets.xs[:, 3:]).all()
    twice = targets_of(lane_sample([lanes[0], lanes[0]], img_shape=SIZE))
    assert len(twice.seeds) == 1
    none = targets_of(lane_sample([], img_shape=SIZE))
    assert none.xs.shape == (0, MAP[0])


def test_round_trip():
    head = build().head
    lanes = road_lanes()
    sample = lane_sample(lanes, img_shape=SIZE)
    found = head.decode(perfect_outputs(sample), [sample.metainfo])[0]
    assert len(found.points) == len(found.scores) == 4
    assert lane_iou(lanes, found.points).max(axis=1).min() > 0.9
    assert all((np.diff(lane[:, 1]) < 0).all() for lane in found.points)


def test_near_and_weak_seeds_are_dropped():
    sample = lane_sample(road_lanes(), img_shape=SIZE)
    outputs = perfect_outputs(sample)
    for limit, count in ((5.0, 4), (7.0, 2), (100.0, 1)):
        head = build(seed_distance=limit).head
        assert len(head.decode(outputs, [sample.metainfo])[0].points) == count
    outputs['hm'] = outputs['hm'] - 20
    assert not build().head.decode(outputs, [sample.metainfo])[0].points


def test_a_wrong_column_is_cancelled_by_reg():
    """The reason why an error of mask may matter less than one of reg."""
    head = build().head
    sample = lane_sample(road_lanes(), img_shape=SIZE)
    outputs = perfect_outputs(sample)
    shifted = {**outputs, 'mask': outputs['mask'].roll(1, dims=-1)}
    exact, moved = (
        head.decode(o, [sample.metainfo])[0] for o in (outputs, shifted)
    )
    for a, b in zip(exact.points, moved.points, strict=True):
        assert np.abs(a[1:-1] - b[1:-1]).max() < 0.1
    worse = {**outputs, 'reg': outputs['reg'] + 1}
    moved = head.decode(worse, [sample.metainfo])[0]
    assert moved.points[0][2, 0] - exact.points[0][2, 0] == pytest.approx(
        8 * 1640 / 400, rel=1e-3
    )


def test_expected_column():
    mask = torch.full((2, 3, 9), -30.0)
    mask[..., 6] = 0
    mask[1, 1, 7] = 0
    assert torch.allclose(
        expected_column(mask), torch.tensor([[6.0, 6, 6], [6, 6.5, 6]])
    )


def test_loss_follows_the_targets():
    model = build()
    head = model.head
    sample = lane_sample(road_lanes(), img_shape=SIZE)
    targets = targets_of(sample)
    features = with_coordinates(torch.zeros(1, 8, *MAP))
    outputs = {
        'hm': torch.from_numpy(targets.heatmap)
        .clamp(1e-4, 1 - 1e-4)
        .logit()[None, None],
        'params': torch.zeros(1, 22, *SEED_MAP),
        'features': features,
    }
    # reg = x of a vertical lane - column, from the coordinate and the bias
    straight = np.array([[820.0, 590], [820, 260]], np.float32)
    vertical = lane_sample([straight], img_shape=SIZE)
    outputs['params'][:, 10 + 9] = -49 / 2
    outputs['params'][:, 21] = 25 - 49 / 2
    losses = head.loss_by_feat(outputs, [vertical])
    assert set(losses) == {
        'loss_hm',
        'loss_reg',
        'loss_location',
        'loss_range',
    }
    assert losses['loss_reg'] < 1e-5
    # A flat mask expects the middle of the columns, 24.5, not 25.
    assert losses['loss_location'] == pytest.approx(0.5, abs=1e-4)
    assert losses['loss_range'] > 0.1
    outputs['params'][:, 21] += 2
    assert head.loss_by_feat(outputs, [vertical])['loss_reg'] == pytest.approx(
        2 * 0.4, rel=1e-4
    )


def test_overfits_two_images():
    model = build()
    samples = [
        lane_sample(road_lanes(bottoms=(400, 1200), bend=b), img_shape=SIZE)
        for b in (0, 80)
    ]
    inputs = torch.stack([tiny_image(s) for s in samples])
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    totals = []
    for _ in range(25):
        losses = model(inputs, samples, mode='loss')
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.6 * totals[0]


def test_images_without_lanes():
    model = build()
    sample = lane_sample([], img_shape=SIZE)
    losses = model(torch.rand(2, 3, *SIZE), [sample] * 2, mode='loss')
    sum(losses.values()).backward()
    assert losses['loss_hm'] > 0
    assert losses['loss_reg'] == losses['loss_location'] == 0


def test_predict_with_own_seeds():
    model = build(score_thr=0.0).eval()
    samples = [lane_sample([], img_shape=SIZE) for _ in range(2)]
    found = model(torch.rand(2, 3, *SIZE), samples, mode='predict')
    for sample in found:
        assert len(sample.pred_lanes.points) == len(sample.pred_lanes.scores)


def test_decode_is_pure(monkeypatch):
    check_decode_is_pure(build(score_thr=0.0).eval(), SIZE, monkeypatch)


def test_proxy():
    check_proxy(build().eval(), SIZE)


def test_quantizes_whole():
    model = build().eval()
    inputs = torch.rand(2, 3, *SIZE)
    float_outputs = model(inputs, mode='tensor')
    attentions = {f'neck.encoder.{i}.attention' for i in (0, 1)}
    weighted = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }
    report = prepare(model, QConfig.from_dict({}))
    assert {r.name for r in report.rows} == weighted | attentions
    assert {r.status for r in report.rows} == {'quantized'}
    calibrate(model, [inputs], forward=lambda m, x: m(x, mode='tensor'))
    with torch.no_grad():
        outputs = model(inputs, mode='tensor', seeds=float_outputs['seeds'])
    for name in model.head_names:
        error = (outputs[name] - float_outputs[name]).norm()
        assert 0 < error < 0.3 * float_outputs[name].norm()
