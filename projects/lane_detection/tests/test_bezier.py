"""BezierLaneNet: curves, matching, fusion, loss, decode, quantization."""

import numpy as np
import pytest
import torch
from head_checks import check_decode_is_pure, check_proxy
from torch import nn

from lane_detection.metrics.culane_f1 import lane_iou
from lane_detection.models import bezier_neck
from lane_detection.models.bezier import cut_to_image, fit_cubic, sample_cubic
from lane_detection.models.bezier_head import BezierLaneHead, local_maxima
from lane_detection.models.bezier_neck import BezierNeck, FeatureFlipFusion
from lane_detection.testing import (
    lane_sample,
    road_lanes,
    tiny_backbone,
    tiny_detector,
    tiny_image,
)
from taskptq.calibration import calibrate
from taskptq.prepare import QConfig, prepare

SIZE = (64, 192)
CURVE = torch.tensor(
    [[0.2, 1.0], [0.3, 0.7], [0.6, 0.4], [0.5, 0.1]], dtype=torch.float64
)


def build(*, deformable=False, **test_cfg):
    return tiny_detector(
        {
            'type': 'BezierLaneHead',
            'in_channels': 32,
            'aux_channels': 32,
            'aux_hidden': 8,
            'lane_width': 3.0,
        },
        backbone=tiny_backbone(num_stages=3, out_indices=(2,)),
        neck={
            'type': 'BezierNeck',
            'in_channels': 32,
            'mid_channels': 8,
            'dilations': (2, 3),
            'deformable': deformable,
        },
        train_cfg={'window': 3},
        test_cfg={'score_thr': 0.5, 'window': 3, **test_cfg},
    )


def perfect_outputs(head, sample, *, columns=(1, 4, 7, 10)):
    curves = head._targets(sample)
    outputs = {
        'logits': torch.full((1, 12), -8.0),
        'curves': torch.zeros(1, 12, 4, 2),
    }
    for column, curve in zip(columns, curves, strict=True):
        outputs['logits'][0, column] = 8
        outputs['curves'][0, column] = curve
    return outputs


def test_fit_recovers_a_curve_of_even_speed():
    straight = torch.stack(
        [CURVE[0] + (CURVE[3] - CURVE[0]) * i / 3 for i in range(4)]
    )
    points = sample_cubic(straight, num_samples=30).numpy()
    assert torch.allclose(fit_cubic(points), straight, atol=1e-9)
    two = fit_cubic(points[[0, -1]])
    assert torch.allclose(two, straight, atol=1e-9)
    with pytest.raises(ValueError, match='no length'):
        fit_cubic(np.ones((3, 2)))


def test_fit_lies_on_the_lane():
    points = sample_cubic(CURVE, num_samples=50).numpy()
    fitted = sample_cubic(fit_cubic(points), num_samples=200).numpy()
    gaps = np.linalg.norm(fitted[:, None] - points, axis=-1).min(axis=0)
    assert gaps.max() < 0.01


def test_cut_keeps_the_piece_inside():
    longer = CURVE.clone()
    longer[0] = torch.tensor([-0.4, 1.6])
    piece = cut_to_image(longer)
    t = torch.linspace(0, 1, 100, dtype=torch.float64)
    samples = sample_cubic(longer, num_samples=100)
    inside = ((samples > 0) & (samples < 1)).all(-1)
    assert 5 < inside.sum() < 95
    assert torch.allclose(piece[0], samples[inside][0])
    assert torch.allclose(piece[3], samples[inside][-1])
    kept = t[inside]
    middle = sample_cubic(piece, num_samples=3)[1]
    at = (kept[0] + kept[-1]) / 2
    s = 1 - at
    expected = (
        s**3 * longer[0]
        + 3 * at * s**2 * longer[1]
        + 3 * at**2 * s * longer[2]
        + at**3 * longer[3]
    )
    assert torch.allclose(middle, expected)
    assert cut_to_image(CURVE + 5) is None


def test_local_maxima_take_the_first_of_equals():
    scores = torch.tensor([[0.1, 0.9, 0.9, 0.2, 0.0, 0.3, 0.1]])
    assert local_maxima(scores, 3)[0].tolist() == [
        False,
        True,
        False,
        False,
        False,
        True,
        False,
    ]


@pytest.mark.parametrize('deformable', [False, True])
def test_shapes(deformable):
    if deformable:
        pytest.importorskip('torchvision')
    model = build(deformable=deformable).eval()
    outputs = model(torch.rand(2, 3, *SIZE), mode='tensor')
    assert list(outputs) == ['logits', 'curves'] == list(model.head_names)
    assert outputs['logits'].shape == (2, 12)
    assert outputs['curves'].shape == (2, 12, 4, 2)


def test_size_of_the_paper():
    pytest.importorskip('torchvision')
    with torch.device('meta'):
        neck = BezierNeck(256)
        head = BezierLaneHead(in_channels=256, aux_channels=256)
    count = sum(p.numel() for m in (neck, head) for p in m.parameters())
    # With 2.78 M of a ResNet-18 without its last stage: 4.10 M in the paper.
    assert (
        abs(count + 2.78e6 - head.aux[0].conv.weight.numel() - 4.10e6) < 0.15e6
    )


def test_missing_torchvision_is_said(monkeypatch):
    monkeypatch.setattr(bezier_neck, 'DeformConv2d', None)
    with pytest.raises(ImportError, match='deformable=False'):
        FeatureFlipFusion(4)
    assert FeatureFlipFusion(4, deformable=False)(
        torch.rand(1, 4, 3, 5)
    ).shape == (1, 4, 3, 5)


def test_a_mirrored_pair_sees_itself():
    """With a symmetric kernel the fusion of a mirrored map is mirrored."""
    pytest.importorskip('torchvision')
    fusion = FeatureFlipFusion(4).eval()
    fusion.init_weights()
    x = torch.rand(1, 4, 3, 6)
    weight = fusion.conv1.weight.data
    fusion.conv1.weight.data = (weight + weight.flip(-1)) / 2
    assert torch.allclose(fusion(x.flip(-1)), fusion(x).flip(-1), atol=1e-5)


def test_round_trip():
    head = build().head
    lanes = road_lanes()
    sample = lane_sample(lanes, img_shape=SIZE)
    found = head.decode(perfect_outputs(head, sample), [sample.metainfo])[0]
    assert len(found.points) == len(found.scores) == 4
    assert lane_iou(lanes, found.points).max(axis=1).min() > 0.9
    assert all(lane[0, 1] > lane[-1, 1] for lane in found.points)


def test_decode_keeps_the_best():
    head = build(max_lanes=2).head
    sample = lane_sample(road_lanes(), img_shape=SIZE)
    outputs = perfect_outputs(head, sample)
    outputs['logits'][0, [4, 10]] = 9
    found = head.decode(outputs, [sample.metainfo])[0]
    assert torch.allclose(found.scores, torch.tensor(9.0).sigmoid())
    assert len(found.points) == 2


def test_matching_takes_the_nearest_peaks():
    head = build().head
    sample = lane_sample(road_lanes(bottoms=(300, 1300)), img_shape=SIZE)
    targets = head._targets(sample).float()
    curves = torch.full((12, 4, 2), 3.0)
    curves[2], curves[3], curves[8] = targets[1], targets[1] + 0.1, targets[0]
    logits = torch.zeros(12)
    logits[[2, 8]] = 1
    queries, matched = head._match(logits, curves, targets)
    assert dict(zip(queries.tolist(), matched.tolist(), strict=True)) == {
        2: 1,
        8: 0,
    }


def test_loss_of_perfect_outputs_is_small():
    head = build().head
    sample = lane_sample(road_lanes(), img_shape=SIZE)
    outputs = perfect_outputs(head, sample)
    mask = torch.from_numpy(head._mask(sample))
    losses = head.loss_by_feat(
        {**outputs, 'seg': mask[None, None] * 40 - 20}, [sample]
    )
    assert 0.02 < mask.mean() < 0.5
    assert all(loss < 1e-3 for loss in losses.values())
    shifted = {**outputs, 'curves': outputs['curves'] + 0.1}
    assert head.loss_by_feat(shifted, [sample])['loss_curve'] == pytest.approx(
        0.2, rel=1e-3
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
    assert set(losses) == {'loss_curve', 'loss_logits', 'loss_seg'}
    assert totals[-1] < 0.6 * totals[0]


def test_images_without_lanes():
    model = build()
    sample = lane_sample([], img_shape=SIZE)
    losses = model(torch.rand(1, 3, *SIZE), [sample], mode='loss')
    sum(losses.values()).backward()
    assert losses['loss_curve'] == 0


def test_decode_is_pure(monkeypatch):
    check_decode_is_pure(build(score_thr=0.0).eval(), SIZE, monkeypatch)


def test_proxy():
    check_proxy(build().eval(), SIZE)


@pytest.mark.parametrize('deformable', [False, True])
def test_quantizes_whole(deformable):
    if deformable:
        pytest.importorskip('torchvision')
    model = build(deformable=deformable).eval()
    inputs = torch.rand(2, 3, *SIZE)
    float_outputs = model(inputs, mode='tensor')
    weighted = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
        or type(module).__name__ == 'DeformConv2d'
    }
    report = prepare(model, QConfig.from_dict({}))
    assert {r.name for r in report.rows} == weighted
    assert 'neck.fusion.conv1' in weighted
    assert {r.status for r in report.rows} == {'quantized'}
    calibrate(model, [inputs], forward=lambda m, x: m(x, mode='tensor'))
    with torch.no_grad():
        outputs = model(inputs, mode='tensor')
    for name, value in outputs.items():
        error = (value - float_outputs[name]).norm()
        assert 0 < error < 0.2 * float_outputs[name].norm()
