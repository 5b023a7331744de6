"""LaneATT: anchors, attention, targets, loss, decode, quantization."""

import json

import numpy as np
import pytest
import torch
from head_checks import check_decode_is_pure, check_proxy
from torch import nn

from lane_detection.geometry import input_lanes
from lane_detection.metrics.culane_f1 import lane_iou
from lane_detection.models.lane_anchors import (
    border_rays,
    ray_positions,
    row_heights,
)
from lane_detection.models.laneatt_head import AnchorAttention, LaneATTHead
from lane_detection.models.laneatt_targets import encode_lanes, match_anchors
from lane_detection.select_anchors import count_matches, most_frequent
from lane_detection.testing import (
    lane_sample,
    road_lanes,
    tiny_backbone,
    tiny_detector,
    tiny_image,
)
from taskptq.calibration import calibrate
from taskptq.prepare import QConfig, prepare

SIZE = (72, 200)
HEAD = {
    'type': 'LaneATTHead',
    'in_channels': 32,
    'img_size': SIZE,
    'feat_channels': 8,
    'stride': 16,
    'num_rows': 36,
    'num_side': 6,
    'num_bottom': 16,
    'init_std': 0.02,
}


def build(**test_cfg):
    return tiny_detector(
        dict(HEAD),
        backbone=tiny_backbone(num_stages=3, out_indices=(2,)),
        train_cfg={'positive': 12.0, 'negative': 15.0},
        test_cfg={'score_thr': 0.5, 'nms_thr': 15.0, **test_cfg},
    )


def targets_of(head, sample):
    return encode_lanes(
        sample,
        num_rows=head.num_rows,
        img_size=SIZE,
        device=torch.device('cpu'),
    )


def perfect_outputs(head, sample):
    """Let the nearest anchor of each lane predict it, and no other."""
    targets = targets_of(head, sample)
    labels, matched = match_anchors(
        head.anchors,
        targets,
        starts=head.starts,
        positive=200.0,
        negative=300.0,
    )
    count = len(head.anchors)
    cls = torch.zeros(1, count, 2)
    cls[..., 0] = 4
    reg = torch.zeros(1, count, 1 + head.num_rows)
    for lane in range(len(targets.xs)):
        known = (labels == 1) & (matched == lane)
        gaps = (head.anchors - targets.xs[lane].nan_to_num()).abs()
        score = (gaps * targets.valid[lane]).sum(-1)
        # From the lower border, so that all rows of the lane are covered.
        score[~known | (head.starts > 0)] = float('inf')
        best = score.argmin()[None]
        cls[0, best] = torch.tensor([-4.0, 4.0])
        reg[0, best] = head._regression_target(
            reg[0, best], best, targets, torch.tensor([lane])
        )
    return {'cls': cls, 'reg': reg}


def test_rays_are_those_of_the_paper():
    rays = border_rays()
    assert rays.shape == (2784, 3)
    at_origin = ray_positions(rays, rays[:, 1]).diagonal()
    assert torch.allclose(at_origin, rays[:, 0], atol=1e-5)
    steep = rays[:, 2].sub(torch.pi / 2).abs().argmin()
    xs = ray_positions(rays[steep : steep + 1], row_heights(72))
    assert torch.allclose(xs, rays[steep, :1], atol=1e-5)


def test_shapes_and_the_size_of_the_paper():
    model = build().eval()
    outputs = model(torch.rand(2, 3, *SIZE), mode='tensor')
    count = 6 * 12 + 16 * 15
    assert list(outputs) == ['cls', 'reg'] == list(model.head_names)
    assert outputs['cls'].shape == (2, count, 2)
    assert outputs['reg'].shape == (2, count, 37)
    with torch.device('meta'):
        paper = LaneATTHead(in_channels=512, img_size=(360, 640))
    assert paper.fc_reg.weight.shape == (73, 1408)
    assert paper.attention.fc_attention.weight.shape == (2783, 704)


def test_gather_reads_along_the_anchor():
    head = build().head
    x = torch.arange(4 * 12.0).view(1, 1, 4, 12).expand(1, 8, 4, 12)
    local = head.gather(x).view(len(head.anchors), 8, 4)
    heights = torch.linspace(0, 1, 4)
    rays = border_rays(num_side=6, num_bottom=16)
    columns = (ray_positions(rays, heights) * 200 / 16).round()
    for i in (0, 100, 250):
        for row in range(4):
            column = int(columns[i, row])
            value = x[0, 0, row, min(column, 11)] if 0 <= column <= 12 else 0
            assert (local[i, :, row] == value).all()


def test_attention_looks_at_all_others():
    attention = AnchorAttention(6, num_anchors=5)
    local = torch.randn(2, 5, 6)
    weights = attention.weights(local)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 5))
    assert (weights.diagonal(dim1=1, dim2=2) == 0).all()
    logits = attention.fc_attention(local).softmax(-1)
    for i in range(5):
        others = [j for j in range(5) if j != i]
        assert torch.equal(weights[:, i, others], logits[:, i])
    assert torch.allclose(attention(local)[0, 1], weights[0, 1] @ local[0])


def test_a_lane_that_leaves_the_image_above_starts_at_its_bottom():
    lane = np.array(
        [[1500.0, 590], [1560, 500], [1700, 400], [1900, 300]],
        dtype=np.float32,
    )
    head = build().head
    targets = targets_of(head, lane_sample([lane], img_shape=SIZE))
    rows = targets.valid[0].nonzero()[:, 0]
    assert rows[0] == 0
    assert rows.diff().eq(1).all()
    assert targets.xs[0, rows].max() < 200
    assert targets.xs[0, rows[-1] + 1] >= 200


def test_round_trip():
    head = build().head
    lanes = road_lanes()
    sample = lane_sample(lanes, img_shape=SIZE)
    found = head.decode(perfect_outputs(head, sample), [sample.metainfo])[0]
    assert len(found.points) == len(found.scores) == 4
    iou = lane_iou(lanes, found.points)
    assert iou.max(axis=1).min() > 0.9
    assert all((np.diff(lane[:, 1]) < 0).all() for lane in found.points)


def test_nms_and_the_limit():
    head = build(max_lanes=2).head
    sample = lane_sample(road_lanes(), img_shape=SIZE)
    outputs = perfect_outputs(head, sample)
    assert len(head.decode(outputs, [sample.metainfo])[0].points) == 2


def test_loss_of_perfect_outputs_is_small():
    head = build().head
    sample = lane_sample(road_lanes(bottoms=(500, 1100)), img_shape=SIZE)
    targets = targets_of(head, sample)
    labels, matched = match_anchors(
        head.anchors, targets, starts=head.starts, positive=12.0, negative=15.0
    )
    cls = torch.stack([-10.0 * labels, 10.0 * labels - 5], dim=-1)[None]
    reg = torch.zeros(1, len(head.anchors), 37)
    chosen = labels.eq(1).nonzero()[:, 0]
    reg[0, chosen] = head._regression_target(
        reg[0, chosen], chosen, targets, matched[chosen]
    )
    losses = head.loss_by_feat({'cls': cls, 'reg': reg}, [sample])
    assert len(chosen) > 2
    assert losses['loss_cls'] < 0.1
    assert losses['loss_reg'] == 0
    wrong = head.loss_by_feat({'cls': -cls, 'reg': reg + 5}, [sample])
    assert wrong['loss_cls'] > 10
    assert wrong['loss_reg'] > 3


@pytest.mark.parametrize('nms', [None, {'threshold': 5.0, 'max_keep': 100}])
def test_overfits_two_images(nms):
    model = build()
    model.head.train_cfg['nms'] = nms
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


def test_an_image_without_lanes():
    model = build()
    sample = lane_sample([], img_shape=SIZE)
    losses = model(torch.rand(1, 3, *SIZE), [sample], mode='loss')
    sum(losses.values()).backward()
    assert losses['loss_reg'] == 0
    assert losses['loss_cls'] > 0


def test_decode_is_pure(monkeypatch):
    check_decode_is_pure(build(score_thr=0.0).eval(), SIZE, monkeypatch)


def test_proxy():
    check_proxy(build().eval(), SIZE)


def test_quantizes_whole():
    model = build().eval()
    inputs = torch.rand(2, 3, *SIZE)
    float_outputs = model(inputs, mode='tensor')
    weighted = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }
    report = prepare(model, QConfig.from_dict({}))
    assert {r.name for r in report.rows} == weighted | {'head.attention'}
    assert {r.status for r in report.rows} == {'quantized'}
    attention = next(r for r in report.rows if r.name == 'head.attention')
    assert (attention.softmax_bits, attention.attention_bits) == (8, 8)
    calibrate(model, [inputs], forward=lambda m, x: m(x, mode='tensor'))
    with torch.no_grad():
        outputs = model(inputs, mode='tensor')
    for name, value in outputs.items():
        error = (value - float_outputs[name]).norm()
        assert 0 < error < 0.2 * float_outputs[name].norm()


def test_selecting_anchors(tmp_path):
    head = build().head
    sample = lane_sample(road_lanes(), img_shape=SIZE)
    assert len(input_lanes(sample)) == 4
    counts = count_matches(head, sample, positive=12.0, negative=15.0)
    assert 0 < counts.sum() < len(counts)
    keep = most_frequent(counts, keep=int(counts.sum()))
    assert keep == counts.nonzero()[:, 0].tolist()
    path = tmp_path / 'anchors.json'
    path.write_text(json.dumps(keep))
    config = {k: v for k, v in HEAD.items() if k != 'type'}
    small = LaneATTHead(**config, anchor_file=str(path))
    assert torch.equal(small.anchors, head.anchors[keep])
    path.write_text(json.dumps([9999]))
    with pytest.raises(ValueError, match='anchor_file'):
        LaneATTHead(**config, anchor_file=str(path))
    with pytest.raises(ValueError, match='keep'):
        most_frequent(counts, keep=len(counts) + 1)


def test_another_input_size_is_refused():
    head = build().head
    sample = lane_sample(road_lanes(), img_shape=SIZE)
    outputs = perfect_outputs(head, sample)
    sample.set_metainfo({'img_shape': (80, 200)})
    with pytest.raises(ValueError, match='img_size'):
        head.decode(outputs, [sample.metainfo])
