"""Tests of LSTR: curves, matching, conversion, and its published weights."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_roads import (
    CROP,
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

pytest.importorskip('mmdet')
from taskptq.engine.builder import build_adapter

PROJECT = Path(__file__).resolve().parents[1]
ROOT = PROJECT.parents[1]
SIZE = (72, 192)


def build():
    from mmdet.registry import MODELS

    import lane_detection.models  # noqa: F401

    model = MODELS.build(
        {
            'type': 'LaneDetector',
            'data_preprocessor': preprocessor(),
            'backbone': {
                'type': 'LSTRResNet',
                'depth': 16,
                'base_channels': 8,
                'num_stages': 3,
                'strides': (1, 2, 2),
                'dilations': (1, 1, 1),
                'out_indices': (2,),
                'norm_eval': False,
            },
            'head': {
                'type': 'LSTRHead',
                'in_channels': 32,
                'embed_dims': 16,
                'feedforward_channels': 32,
                'num_queries': 5,
                'dropout': 0.0,
            },
        }
    )
    model.init_weights()
    return model


@pytest.fixture
def model():
    return build()


def fitted_curves(road, *, pole=-0.3):
    """Fit k, m, n and b of each lane at a given f (b' = 0), (L, 8)."""
    curves = []
    for lane in road_lanes(road):
        x = lane[:, 0].astype(float) / 1640
        y = (lane[:, 1].astype(float) - CROP[1]) / (CROP[3] - CROP[1])
        d = y - pole
        basis = np.stack([d**-2, d**-1, np.ones_like(y), y], axis=1)
        k, m, n, b = np.linalg.lstsq(basis, x, rcond=None)[0]
        curves.append([y.min(), y.max(), k, pole, m, n, b, 0.0])
    return torch.tensor(curves, dtype=torch.float32)


def head_outputs(num_queries=7):
    logits = torch.zeros(len(ROADS), num_queries, 2)
    logits[..., 0] = 5
    curves = torch.zeros(len(ROADS), num_queries, 8)
    for i, road in enumerate(ROADS):
        found = fitted_curves(road)
        logits[i, 1 : 1 + len(found), 1] = 10
        curves[i, 1 : 1 + len(found)] = found
    return {'logits': logits, 'curve': curves}


def test_curve_formula():
    from lane_detection.models.lstr_curves import curve_x

    curve = torch.tensor([0.1, 0.9, 0.02, -0.5, 0.3, 0.4, 0.25, 0.125])
    y = torch.tensor([0.0, 0.5])
    expected = [
        0.02 / 0.25 + 0.3 / 0.5 + 0.4 - 0.125,
        0.02 + 0.3 + 0.4 + 0.125 - 0.125,
    ]
    assert curve_x(curve, y).tolist() == pytest.approx(expected)
    pole = torch.tensor([-0.5])
    assert curve_x(curve, pole).isfinite().all()


def test_curve_points_run_upwards():
    from lane_detection.models.lstr_curves import curve_points

    curves = torch.tensor(
        [[0.3, 1.2, 0, -1, 0, 0.5, 0, 0], [0.8, 0.2, 0, -1, 0, 0.5, 0, 0.0]]
    )
    points = curve_points(curves, num_points=5)
    assert points[0, :, 1].tolist() == pytest.approx(
        [1, 0.825, 0.65, 0.475, 0.3]
    )
    assert points[0, :, 0].tolist() == pytest.approx([0.5] * 5)
    assert points[1, :, 0].isnan().all()


def test_round_trip():
    from lane_detection.models import LSTRHead

    head = LSTRHead(8, embed_dims=16)
    samples = make_samples((360, 640))
    found = head.decode(head_outputs(), [s.metainfo for s in samples])
    for instances, road in zip(found, ROADS, strict=True):
        assert_same_lanes(instances, road_lanes(road), iou=0.9)


def test_targets_and_loss_of_the_right_answer():
    """The fitted curves are matched to their lanes and cost little."""
    from lane_detection.models.lstr_loss import (
        LSTRLossWeights,
        curve_losses,
        curve_targets,
        match,
    )

    samples = make_samples((360, 640))
    weights = LSTRLossWeights()
    targets = [curve_targets(s, num_rows=56) for s in samples]
    assert [len(t.limits) for t in targets] == [4, 2]
    for target in targets:
        assert target.weights.max() == pytest.approx(1)
        assert torch.all(target.limits[:, 0] < target.limits[:, 1])
    outputs = head_outputs()
    queries, lanes = match(
        outputs['logits'][0], outputs['curve'][0], targets[0], weights=weights
    )
    assert queries.tolist() == [1, 2, 3, 4]
    assert lanes.tolist() == [0, 1, 2, 3]
    losses = curve_losses(
        outputs['logits'], outputs['curve'], targets, weights=weights
    )
    assert sum(losses.values()) < 1.0
    outputs['curve'][..., 5] += 0.1
    worse = curve_losses(
        outputs['logits'], outputs['curve'], targets, weights=weights
    )
    assert worse['loss_curve'] > losses['loss_curve'] + 5


def test_images_without_lanes(model):
    model.train()
    batch = make_batch(SIZE, roads=[{}, {}])
    data = model.data_preprocessor(batch, True)
    losses = model(**data, mode='loss')
    assert float(losses['loss_curve'].detach()) == 0
    sum(losses.values()).backward()
    assert model.head.class_embed.weight.grad.abs().sum() > 0


def test_overfit_and_decode(model):
    batch = make_batch(SIZE)
    # A step of training has a loss for each layer of the decoder.
    before, after = overfit(model, batch, steps=80, lr=2e-3)
    assert after < 0.5 * before
    assert_pure_decode(model, batch)


def test_proxy_and_shapes(model):
    model.eval()
    outputs = model(torch.randn(2, 3, *SIZE), mode='tensor')
    assert outputs['logits'].shape == (2, 5, 2)
    assert outputs['curve'].shape == (2, 5, 8)
    shared = outputs['curve'][..., 2:6]
    assert torch.equal(shared, shared[:, :1].expand_as(shared))
    assert_proxies(model, outputs)
    proxy = model.head.foreground_proxy(outputs)['curve']
    torch.testing.assert_close(
        proxy[..., 0], outputs['logits'].softmax(-1)[..., 1].detach()
    )


def test_swap_sees_every_layer(model):
    report, before, after = prepare_w8a8(model, make_batch(SIZE))
    rows = {row.name: row for row in report.rows}
    for name in (
        'encoder.layers.1.self_attn',
        'decoder.layers.0.self_attn',
        'decoder.layers.1.cross_attn',
    ):
        row = rows[f'head.{name}.attn']
        assert (row.status, row.type) == ('quantized', 'MultiheadAttention')
        assert row.attention_bits == row.softmax_bits == 8
    for name in ('class_embed', 'reg_branches.0.4', 'reg_branches.1.4'):
        assert rows[f'head.{name}'].reason == 'edge layer'
    floats = [row.name for row in report.rows if row.status == 'float']
    assert floats == ['head.query_embed']
    assert 0 < relative_error(before['curve'], after['curve']) < 0.2


def published_names(model):
    """Return the model's weights as the authors' file names them."""
    from lane_detection.convert_lstr import rename

    state = model.state_dict()
    stems = ['conv1', 'bn1', *(f'layer{i}' for i in (1, 2, 3, 4))]
    names = [
        n.removeprefix('backbone.') for n in state if n.startswith('backbone.')
    ]
    assert {n.split('.')[0] for n in names} <= set(stems)
    for part in ('weight', 'bias'):
        names += [
            f'input_proj.{part}',
            f'class_embed.{part}',
            f'transformer.decoder.norm.{part}',
        ]
        for stack, norms in (('encoder', 2), ('decoder', 3)):
            for i in range(2):
                base = f'transformer.{stack}.layers.{i}'
                names += [f'{base}.linear1.{part}', f'{base}.linear2.{part}']
                names += [f'{base}.norm{k + 1}.{part}' for k in range(norms)]
                for attention in ('self_attn', 'multihead_attn')[: norms - 1]:
                    names += [
                        f'{base}.{attention}.in_proj_{part}',
                        f'{base}.{attention}.out_proj.{part}',
                    ]
        for mlp in ('specific_embed', 'shared_embed'):
            names += [f'{mlp}.layers.{i}.{part}' for i in range(3)]
    names.append('query_embed.weight')
    published = {f'module.{name}': state[rename(name)] for name in names}
    # The first norm of the authors is frozen and has no counter.
    del published['module.bn1.num_batches_tracked']
    counters = {
        'total_ops': torch.zeros(1),
        'module.conv1.total_ops': torch.zeros(1),
        'module.total_params': torch.zeros(1),
    }
    return published | counters


def test_conversion_of_a_file_of_the_same_format(model, tmp_path):
    from lane_detection.convert_lstr import main

    source, out = tmp_path / 'lstr.pkl', tmp_path / 'new' / 'lstr.pth'
    torch.save(published_names(model), source)
    main([str(source), str(out)])
    content = torch.load(out, weights_only=True)
    assert len(content['meta']['lstr']['sha256']) == 64
    other = build()
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    other.load_state_dict(content['state_dict'], strict=True)
    x = torch.randn(1, 3, *SIZE)
    for a, b in zip(
        model.eval()(x).values(), other.eval()(x).values(), strict=True
    ):
        assert torch.equal(a, b)


def test_conversion_of_culane(model):
    from lane_detection.convert_lstr import convert

    published = published_names(model)
    two = convert(published)
    three = dict(published)
    for kind in ('weight', 'bias'):
        name = f'module.class_embed.{kind}'
        lane, other = published[name][1:], published[name][:1]
        three[name] = torch.cat([torch.full_like(lane, 9.0), lane, other])
        name = f'module.specific_embed.layers.2.{kind}'
        three[name] = published[name][[1, 0, *range(2, 4)]]
    found = convert(three)
    assert found.keys() == two.keys()
    for name, value in two.items():
        assert torch.equal(found[name], value), name
    three['module.class_embed.weight'] = torch.zeros(5, 32)
    with pytest.raises(ValueError, match='5 logits'):
        convert(three)


def test_conversion_refuses_other_files(model, tmp_path):
    from lane_detection.convert_lstr import convert, main

    state = published_names(model)
    with pytest.raises(ValueError, match='not a weight of LSTR'):
        convert(state | {'module.fpn.weight': torch.zeros(1)})
    del state['module.query_embed.weight']
    with pytest.raises(ValueError, match=r'no head\.query_embed\.weight'):
        convert(state)
    with pytest.raises(SystemExit, match='there is no checkpoint file'):
        main([str(tmp_path / 'none.pkl'), str(tmp_path / 'out.pth')])


@pytest.mark.data('tusimple_mini', 'weights')
def test_published_weights(tmp_path):
    """The authors' code scores 0.961 on these frames."""
    import cv2
    from mmdet.registry import MODELS
    from mmengine.config import Config

    from lane_detection.convert_lstr import convert_file
    from lane_detection.metrics.tusimple import tusimple_score
    from lane_detection.structures import LaneDataSample

    convert_file(
        ROOT / 'data/weights/lstr_tusimple.pkl', tmp_path / 'lstr.pth'
    )
    config = Config.fromfile(PROJECT / 'configs/_base_/models/lstr_r18s.py')
    model = MODELS.build(config.model).eval()
    content = torch.load(tmp_path / 'lstr.pth', weights_only=True)
    model.load_state_dict(content['state_dict'], strict=True)
    folder = ROOT / 'data/tusimple_mini'
    scores = []
    for line in (folder / 'label_data.json').read_text().splitlines():
        label = json.loads(line)
        image = cv2.imread(str(folder / label['raw_file'].lstrip('/')))
        # The labels are in pixels of the small images.
        frame = [side * 2.5 for side in image.shape[:2]]
        sample = LaneDataSample(
            metainfo={
                'img_shape': (360, 640),
                'crop': (0.0, 0.0, frame[1], frame[0]),
            }
        )
        image = torch.from_numpy(cv2.resize(image, (640, 360)))
        data = model.data_preprocessor(
            {'inputs': [image.permute(2, 0, 1)], 'data_samples': [sample]}
        )
        (sample,) = model(**data, mode='predict')
        rows = np.array(label['h_samples']) * 2.5
        predicted = [
            np.interp(
                rows, points[::-1, 1], points[::-1, 0], left=-2, right=-2
            )
            for points in sample.pred_lanes.points
        ]
        truth = [
            [x * 2.5 if x >= 0 else -2 for x in lane]
            for lane in label['lanes']
        ]
        scores.append(
            tusimple_score(predicted, truth, h_samples=rows).accuracy
        )
    assert len(scores) == 10
    assert np.mean(scores) >= 0.955


@pytest.mark.parametrize(('pixels', 'share'), [(0, 0), (3, 0.01), (60, 1)])
def test_disagreement_of_lanes_that_moved(model, pixels, share):
    adapter = build_adapter(model)
    meta = {
        'img_shape': SIZE,
        'ori_shape': (590, 1640),
        'crop': (0, 0, 1640, 590),
    }
    curve = torch.zeros(1, 5, 8)
    curve[..., 1] = 1.0  # from the top to the bottom
    curve[..., 7] = torch.arange(-5, 0) / 6  # -b', at x = 1/6 ... 5/6
    logits = torch.tensor([0.0, 9.0]).expand(1, 5, 2)
    moved = curve.clone()
    moved[..., 7] -= pixels / 1640
    found = adapter.disagreement(
        {'logits': logits, 'curve': curve},
        {'logits': logits, 'curve': moved},
        [meta],
    )
    assert found == pytest.approx([share], abs=1e-4)
