"""GANet: neck, aggregation, targets, grouping, loss, quantization."""

import math

import numpy as np
import pytest
import torch
from head_checks import check_decode_is_pure, check_proxy
from torch import nn

from lane_detection.metrics.culane_f1 import lane_iou
from lane_detection.models.ganet_head import GANetHead
from lane_detection.models.ganet_targets import encode_lanes
from lane_detection.models.heatmaps import draw_gaussian, keypoint_focal_loss
from lane_detection.models.keypoint_grouping import (
    cluster_starts,
    group_points,
    horizontal_peaks,
)
from lane_detection.models.point_aggregation import (
    aggregation_loss,
    gather_points,
)
from lane_detection.models.trans_fpn import TransFPN, sine_embedding
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
AGGREGATION = {'hidden_channels': 8, 'num_points': 3}


def build(*, aggregation=None, **test_cfg):
    return tiny_detector(
        {'type': 'GANetHead', 'in_channels': 8, 'aggregation': aggregation},
        backbone=tiny_backbone(),
        neck={
            'type': 'TransFPN',
            'in_channels': [16, 32, 64],
            'out_channels': 8,
            'key_channels': 4,
            'smooth': False,
        },
        train_cfg={'radius': 1},
        test_cfg={
            'score_thr': 0.4,
            'cluster_radius': 2.0,
            'min_points': 3,
            **test_cfg,
        },
    )


def targets_of(sample, **kwargs):
    return encode_lanes(
        sample,
        **{'size': MAP, 'stride': 8, 'num_points': 45, 'radius': 1, **kwargs},
    )


def perfect_outputs(sample):
    targets = targets_of(sample)
    outputs = {
        name: torch.from_numpy(getattr(targets, name))[None]
        for name in GANetHead.head_names
    }
    return {
        **outputs,
        'kpt_hm': outputs['kpt_hm'].clamp(1e-4, 1 - 1e-4).logit(),
    }


@pytest.mark.parametrize('aggregation', [None, AGGREGATION])
def test_shapes(aggregation):
    model = build(aggregation=aggregation).eval()
    outputs = model(torch.rand(2, 3, *SIZE), mode='tensor')
    assert list(outputs) == ['kpt_hm', 'pts_offset', 'int_offset']
    assert tuple(outputs) == model.head_names
    assert [value.shape[1] for value in outputs.values()] == [1, 2, 2]
    assert {value.shape[2:] for value in outputs.values()} == {MAP}
    assert outputs['kpt_hm'].sigmoid().mean() < 0.2


def test_neck_of_the_paper():
    neck = TransFPN([128, 256, 512], num_outs=2).eval()
    feats = [
        torch.rand(1, 128, 10, 26),
        torch.rand(1, 256, 5, 13),
        torch.rand(1, 512, 3, 7),
    ]
    shapes = [x.shape for x in neck(feats)]
    assert shapes == [(1, 64, 10, 26), (1, 64, 5, 13)]
    attention = neck.encoder[0].attention
    x = torch.rand(1, 64, 2, 3)
    assert torch.equal(attention(x), x)  # gamma starts at 0
    nn.init.ones_(attention.gamma)
    q, k, v = (
        conv(x)[0].flatten(1).T
        for conv in (
            attention.query_conv,
            attention.key_conv,
            attention.value_conv,
        )
    )
    out = torch.stack([(k @ q[i]).softmax(0) @ v for i in range(6)])
    assert q.shape == (6, 16)
    assert torch.allclose(
        attention(x)[0] - x[0], out.T.view(64, 2, 3), atol=1e-5
    )


def test_sine_embedding():
    embedding = sine_embedding(8, 3, 5)
    assert embedding.shape == (8, 3, 5)
    assert embedding[0, 1, 4].item() == pytest.approx(math.sin(2))
    assert embedding[1, 1, 4].item() == pytest.approx(math.cos(2))
    assert embedding[4, 1, 4].item() == pytest.approx(math.sin(5))
    assert embedding[6, 0, 4].item() == pytest.approx(math.sin(5 / 10000**0.5))


def test_gaussians():
    heatmap = np.zeros((7, 9), np.float32)
    draw_gaussian(heatmap, x=4, y=3, radius=2)
    draw_gaussian(heatmap, x=0, y=0, radius=2)
    assert heatmap[3, 4] == heatmap[0, 0] == 1
    assert heatmap[3, 5] == pytest.approx(math.exp(-1 / (2 * (5 / 6) ** 2)))
    assert heatmap[3, 7] == 0
    before = heatmap.copy()
    draw_gaussian(heatmap, x=5, y=3, radius=2)
    assert (heatmap >= before).all()
    assert heatmap[3, 4] == heatmap[3, 5] == 1


def test_focal_loss_by_hand():
    logits = torch.tensor([0.0, 1.0, -1.0])
    target = torch.tensor([1.0, 0.5, 0.0])
    p = logits.sigmoid()
    expected = -(
        (1 - p[0]) ** 2 * p[0].log()
        + 0.5**4 * p[1] ** 2 * (1 - p[1]).log()
        + p[2] ** 2 * (1 - p[2]).log()
    )
    assert torch.allclose(keypoint_focal_loss(logits, target), expected)
    assert keypoint_focal_loss(logits, target, min_positives=2) == 0
    nothing = torch.zeros(3)
    assert torch.allclose(
        keypoint_focal_loss(logits, nothing), -(p**2 * (1 - p).log()).sum()
    )


def test_offsets_lead_to_the_start():
    lanes = road_lanes(bottoms=(300, 1300))
    targets = targets_of(lane_sample(lanes, img_shape=SIZE))
    rows, columns = np.nonzero(targets.mask)
    assert (targets.kpt_hm[0, rows, columns] == 1).all()
    assert (targets.pts_offset[1, rows, columns] >= 0).all()
    assert ((targets.int_offset >= 0) & (targets.int_offset <= 1)).all()
    points = np.stack([columns, rows]) + targets.int_offset[:, rows, columns]
    starts = points + targets.pts_offset[:, rows, columns]
    assert len(np.unique(starts.round(3), axis=1).T) == 2
    assert [len(s) for s in targets.samples] == [41, 41]


def test_peaks_in_rows():
    scores = torch.tensor([[[[0.1, 0.5, 0.4], [0.6, 0.2, 0.3]]]])
    assert torch.equal(
        horizontal_peaks(scores),
        torch.tensor([[[[0, 0.5, 0], [0.6, 0, 0.3]]]]),
    )


def test_clusters_are_greedy_and_do_not_merge():
    cells = np.array([[0, 0], [10, 0], [2, 0], [6, 0], [8, 0]])
    # 6 opens a third cluster (4 from 2 and 10); 8 is near to 10 and to 6.
    assert cluster_starts(cells, radius=2).tolist() == [[1, 0], [9, 0], [6, 0]]


def test_votes_go_to_the_first_near_centre():
    cells = np.array([[4, 9], [4, 5], [20, 9], [20, 3], [30, 1]])
    votes = np.array(
        [[4, 9], [5, 9], [20, 9], [19.5, 9.5], [12, 8]], np.float32
    )
    groups = group_points(cells, votes, radius=2)
    assert [g.tolist() for g in groups] == [[0, 1], [2, 3]]
    assert group_points(cells[1:2], votes[1:2], radius=2) == []


def test_round_trip():
    head = build().head
    lanes = road_lanes(top=330)
    sample = lane_sample(lanes, img_shape=SIZE)
    found = head.decode(perfect_outputs(sample), [sample.metainfo])[0]
    assert len(found.points) == len(found.scores) == 4
    assert lane_iou(lanes, found.points).max(axis=1).min() > 0.9
    assert all((np.diff(lane[:, 1]) < 0).all() for lane in found.points)
    strict = build(min_points=50).head
    assert not strict.decode(perfect_outputs(sample), [sample.metainfo])[
        0
    ].points


def test_grouping_is_bounded():
    head = build(max_points=20).head
    sample = lane_sample(road_lanes(), img_shape=SIZE)
    outputs = perfect_outputs(sample)
    outputs['kpt_hm'] = outputs['kpt_hm'] * 0 + 5  # all cells fire
    scores = outputs['kpt_hm'].sigmoid()[0, 0]
    assert len(head._chosen(scores)) == 20
    head.decode(outputs, [sample.metainfo])


def test_loss_of_perfect_outputs_is_small():
    head = build().head
    sample = lane_sample(road_lanes(), img_shape=SIZE)
    outputs = perfect_outputs(sample)
    losses = head.loss_by_feat(outputs, [sample])
    assert set(losses) == {'loss_hm', 'loss_int', 'loss_pts'}
    assert losses['loss_int'] == losses['loss_pts'] == 0
    outputs['pts_offset'] = outputs['pts_offset'] + 1
    outputs['int_offset'] = outputs['int_offset'] + 1
    worse = head.loss_by_feat(outputs, [sample])
    assert worse['loss_pts'] == pytest.approx(0.5, rel=1e-3)
    assert worse['loss_int'] == pytest.approx(2.0, rel=1e-3)
    outputs['kpt_hm'] = -outputs['kpt_hm']
    assert (
        head.loss_by_feat(outputs, [sample])['loss_hm']
        > 10 * losses['loss_hm']
    )


def test_gathering_at_whole_cells():
    x = torch.arange(20.0).view(1, 1, 4, 5)
    offsets = torch.zeros(1, 2, 2, 4, 5)
    offsets[:, 0, 0] = 1
    offsets[:, 1, 1] = -0.5
    found = gather_points(x, offsets)
    assert torch.allclose(found[0, 0, :, :4], x[0, 0, :, 1:], atol=1e-5)
    assert torch.allclose(found[0, 0, :, 4], torch.zeros(4), atol=1e-5)
    assert torch.allclose(
        found[0, 1, 1:], (x[0, 0, 1:] + x[0, 0, :-1]) / 2, atol=1e-5
    )


def test_aggregation_loss_assigns_points_to_samples():
    cells = np.array([[2, 1], [3, 2]])
    lane = np.array([[0.0, 0], [1, 1], [2, 2], [3, 3]])
    offsets = torch.zeros(2, 2, 4, 5)
    for column, row in cells:
        offsets[0, :, row, column] = torch.tensor([3.0 - column, 3 - row])
        offsets[1, :, row, column] = torch.tensor([1.0 - column, 1 - row])
    assert aggregation_loss(offsets, cells=[cells], samples=[lane]) == 0
    assert aggregation_loss(
        offsets + 1 / 9, cells=[cells], samples=[lane]
    ) == pytest.approx(0.5 / 9, rel=1e-4)


@pytest.mark.parametrize('aggregation', [None, AGGREGATION])
def test_overfits_two_images(aggregation):
    model = build(aggregation=aggregation)
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
    assert ('loss_aux' in losses) == (aggregation is not None)
    assert totals[-1] < 0.6 * totals[0]


def test_images_without_lanes():
    model = build(aggregation=AGGREGATION)
    sample = lane_sample([], img_shape=SIZE)
    losses = model(torch.rand(2, 3, *SIZE), [sample] * 2, mode='loss')
    sum(losses.values()).backward()
    assert all(loss == 0 for loss in losses.values())


def test_decode_is_pure(monkeypatch):
    model = build(score_thr=0.0, min_points=1).eval()
    check_decode_is_pure(model, SIZE, monkeypatch)


def test_proxy():
    check_proxy(build().eval(), SIZE)


@pytest.mark.parametrize('aggregation', [None, AGGREGATION])
def test_quantizes_whole(aggregation):
    model = build(aggregation=aggregation).eval()
    for layer in model.neck.encoder:
        nn.init.ones_(layer.attention.gamma)
    inputs = torch.rand(2, 3, *SIZE)
    float_outputs = model(inputs, mode='tensor')
    attentions = {f'neck.encoder.{i}.attention' for i in (0, 1)}
    weighted = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    }
    report = prepare(model, QConfig.from_dict({}))
    assert {r.name for r in report.rows} == weighted | attentions
    assert {r.status for r in report.rows} == {'quantized'}
    for row in report.rows:
        if row.name in attentions:
            assert (row.softmax_bits, row.attention_bits) == (8, 8)
    calibrate(model, [inputs], forward=lambda m, x: m(x, mode='tensor'))
    with torch.no_grad():
        outputs = model(inputs, mode='tensor')
    for name, value in outputs.items():
        error = (value - float_outputs[name]).norm()
        assert 0 < error < 0.2 * float_outputs[name].norm()
