"""Each grid head in a tiny detector: trains, loads, quantizes, evaluates."""

import copy
import math

import numpy as np
import pytest
import torch

pytest.importorskip('mmdet')

from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData

from taskptq.calibration import calibrate
from taskptq.engine.builder import build_adapter, build_qconfig
from taskptq.engine.pipeline import prepare_in_place, run_batch
from taskptq.export.checkpoint import pack_model, unpack_model
from taskptq.models.grid import head as grid_head
from taskptq.reconstruction import freeze

BACKBONE = dict(
    depth=18, base_channels=8, frozen_stages=-1, norm_eval=True, init_cfg=None
)
NECK = dict(in_channels=[8, 16, 32, 64], out_channels=16, num_outs=4)
NUM_CLASSES = 3
ROI_HEAD = dict(in_channels=16, fc_out_channels=32, num_classes=NUM_CLASSES)
TWO_STAGE = {
    'backbone': BACKBONE,
    'neck': NECK,
    'rpn_head': dict(in_channels=16, feat_channels=16),
    'rpn_head.anchor_generator': dict(scales=[4], strides=[4, 8, 16, 32]),
    'roi_head.bbox_roi_extractor': dict(out_channels=16),
    'train_cfg.rpn_proposal': dict(nms_pre=60, max_per_img=30),
    'test_cfg.rpn': dict(nms_pre=60, max_per_img=30),
    # An untrained model has no score above a useful threshold.
    'test_cfg.rcnn': dict(score_thr=0.0, max_per_img=20),
}
# What shrinks a detector of mmdet's zoo, by path.
SHRUNK = {
    'faster-rcnn': {**TWO_STAGE, 'roi_head.bbox_head': ROI_HEAD},
    'cascade-rcnn': {
        **TWO_STAGE,
        **{f'roi_head.bbox_head.{i}': ROI_HEAD for i in range(3)},
    },
    'retinanet': {
        'backbone': BACKBONE,
        'neck': {**NECK, 'num_outs': 5},
        'bbox_head': dict(
            in_channels=16,
            feat_channels=16,
            stacked_convs=1,
            num_classes=NUM_CLASSES,
        ),
        'bbox_head.anchor_generator': dict(octave_base_scale=2),
        'test_cfg': dict(score_thr=0.0, nms_pre=60, max_per_img=20),
    },
}
LOSS = dict(type='taskptq.GridLoss')
RPN = dict(type='taskptq.GridRPNHead', loss_bbox=LOSS)
BOX = dict(type='taskptq.GridShared2FCBBoxHead', loss_bbox=LOSS)
# name -> zoo model, its grid heads, names of their regression layers
CASES = {
    'faster': (
        'faster-rcnn',
        {'rpn_head': RPN, 'roi_head.bbox_head': BOX},
        ['rpn_head.rpn_reg', 'roi_head.bbox_head.fc_reg'],
    ),
    'faster-agnostic': (
        'faster-rcnn',
        {'roi_head.bbox_head': dict(BOX, reg_class_agnostic=True)},
        ['roi_head.bbox_head.fc_reg'],
    ),
    'faster-min': (
        'faster-rcnn',
        {
            'roi_head.bbox_head': dict(
                BOX, loss_bbox=dict(LOSS, uncertainty='min')
            )
        },
        ['roi_head.bbox_head.fc_reg'],
    ),
    'cascade': (
        'cascade-rcnn',
        {
            'rpn_head': RPN,
            **{f'roi_head.bbox_head.{i}': BOX for i in range(3)},
        },
        [
            'rpn_head.rpn_reg',
            *(f'roi_head.bbox_head.{i}.fc_reg' for i in range(3)),
        ],
    ),
    'cascade-classes': (
        'cascade-rcnn',
        {
            f'roi_head.bbox_head.{i}': dict(BOX, reg_class_agnostic=False)
            for i in range(3)
        },
        [f'roi_head.bbox_head.{i}.fc_reg' for i in range(3)],
    ),
    'retinanet': (
        'retinanet',
        {
            'bbox_head': dict(
                type='taskptq.GridRetinaHead',
                loss_bbox=dict(LOSS, uncertainty='match'),
            )
        },
        ['bbox_head.retina_reg'],
    ),
}


def change(settings, path, values):
    """Update the dict at a dotted path; list items by their index."""
    for key in path.split('.'):
        settings = settings[int(key) if key.isdigit() else key]
    if 'loss_bbox' in values:
        # Like _delete_=True: update() would keep the old loss's arguments.
        del settings['loss_bbox']
    settings.update(values)


def build(zoo_name, changes):
    """A shrunk detector of the zoo, with seeded random weights."""
    text = f"_base_ = ['mmdet::_base_/models/{zoo_name}_r50_fpn.py']"
    settings = Config.fromstring(text, '.py').model
    for path, values in (*SHRUNK[zoo_name].items(), *changes.items()):
        change(settings, path, values)
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.manual_seed(0)
        return MODELS.build(settings)


def sample(boxes, *, size):
    """A DetDataSample with ground truth."""
    found = DetDataSample(
        metainfo=dict(
            img_shape=(size, size),
            ori_shape=(size, size),
            img_id=0,
            pad_shape=(size, size),
            batch_input_shape=(size, size),
            scale_factor=(1.0, 1.0),
        )
    )
    labels = torch.arange(len(boxes)) % NUM_CLASSES
    found.gt_instances = InstanceData(
        bboxes=HorizontalBoxes(boxes, dtype=torch.float32), labels=labels
    )
    found.ignored_instances = InstanceData(
        bboxes=HorizontalBoxes(torch.zeros(0, 4)), labels=labels[:0]
    )
    return found


def detection_batch(*, num_boxes=4, size=64):
    """Two images of noise with boxes."""
    rng = np.random.default_rng(0)
    inputs = [
        torch.from_numpy(rng.integers(0, 256, (3, size, size), dtype=np.uint8))
        for _ in range(2)
    ]
    samples = []
    for _ in inputs:
        start = rng.uniform(0, size - 26, (num_boxes, 2))
        extent = rng.uniform(8, 24, (num_boxes, 2))
        boxes = np.concatenate([start, start + extent], axis=1)
        samples.append(sample(boxes, size=size))
    return {'inputs': inputs, 'data_samples': samples}


@pytest.fixture(params=CASES)
def case(request):
    """(grid detector, its name in the zoo, names of regression layers)."""
    zoo_name, changes, layers = CASES[request.param]
    return build(zoo_name, changes), zoo_name, layers


def total_loss(model, batch):
    """Sum of the losses; the samplers draw the same at every call."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - what mmdet's samplers use
    data = model.data_preprocessor(copy.deepcopy(batch), True)
    losses = model(**data, mode='loss')
    return model.parse_losses(losses)


@pytest.mark.slow
def test_trains_two_steps(case):
    model, _, layers = case
    model.init_weights()
    model.train()
    batch = detection_batch()
    gradients = []
    for name in layers:
        model.get_submodule(name).register_full_backward_hook(
            lambda module, inputs, outputs: gradients.append(
                outputs[0].abs().max().item()
            )
        )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    found = []
    for _ in range(3):
        loss, parts = total_loss(model, batch)
        assert all(math.isfinite(v.item()) for v in parts.values())
        assert any('loss' in key and 'bbox' in key for key in parts)
        found.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert found[2] < found[0]
    # p - p* is in [-1, 1], and each loss is an average.
    assert len(gradients) >= 3 * len(layers)
    assert 0 < max(gradients) <= 1.5
    for name in layers:
        assert bool(model.get_submodule(name).weight.grad.any())


def test_images_without_objects(case):
    model, _, layers = case
    model.train()
    loss, parts = total_loss(model, detection_batch(num_boxes=0))
    boxes = [v.item() for key, v in parts.items() if 'bbox' in key]
    assert boxes == [0.0] * len(boxes)
    assert boxes
    loss.backward()
    for name in layers:
        assert model.get_submodule(name).weight.grad is not None


def test_plain_checkpoint_loads(case, monkeypatch):
    model, zoo_name, layers = case
    messages = []
    monkeypatch.setattr(
        grid_head, 'print_log', lambda text, **kw: messages.append(text)
    )
    before = copy.deepcopy(model.state_dict())
    given = {
        key: torch.randn_like(value.float()).to(value.dtype)
        for key, value in build(zoo_name, {}).state_dict().items()
    }
    model.load_state_dict(given, strict=True)
    for key, value in model.state_dict().items():
        kept = key.rpartition('.')[0] in layers
        assert torch.equal(value, (before if kept else given)[key]), key
    assert sorted(m.partition(':')[0] for m in messages) == sorted(layers)


def quantized(model, batch, **changes):
    qconfig = {
        'weight': {'num_bits': 8},
        'activation': {'num_bits': 8},
        **changes,
    }
    report = prepare_in_place(model.eval(), build_qconfig(qconfig))
    calibrate(model, [batch], forward=run_batch)
    freeze(model)
    return report


def boxes_of(model, batch):
    with torch.no_grad():
        return [
            sample.pred_instances
            for sample in model.test_step(copy.deepcopy(batch))
        ]


@pytest.mark.slow
def test_quantizes_and_evaluates(case):
    model, _, layers = case
    batch = detection_batch()
    before = boxes_of(model.eval(), batch)
    fresh, rough = copy.deepcopy(model), copy.deepcopy(model)
    report = quantized(model, batch)
    rows = {row.name: row for row in report.rows}
    grids = {
        name: row for name, row in rows.items() if name.endswith('box_grid')
    }
    assert sorted(grids) == sorted(
        f'{name.rpartition(".")[0]}.box_grid' for name in layers
    )
    for row in grids.values():
        assert row.status == 'float'
        assert row.reason == 'box grid: softmax and expectation stay float'
    after = boxes_of(model, batch)
    for one, two in zip(before, after, strict=True):
        assert len(one) > 0
        assert bool(two.bboxes.isfinite().all())
        assert not torch.equal(one.bboxes, two.bboxes)
    payload = pack_model(model, recipe={}, meta={})
    qconfig = {'weight': {'num_bits': 8}, 'activation': {'num_bits': 8}}
    prepare_in_place(fresh, build_qconfig(qconfig))
    unpack_model(payload, fresh)
    for one, two in zip(after, boxes_of(fresh, batch), strict=True):
        assert torch.equal(one.bboxes, two.bboxes)
        assert torch.equal(one.scores, two.scores)
    quantized(
        rough,
        batch,
        edge_bits=None,
        weight={'num_bits': 2},
        activation={'num_bits': 2},
    )
    for found in boxes_of(rough, batch):
        assert bool(found.bboxes.isfinite().all())


@pytest.mark.parametrize('num_bits', [None, 4, 3, 2])
def test_bits_of_the_regression_layer(case, num_bits):
    """An edge layer at 8 bits by default, lower by overrides only."""
    model, _, layers = case
    bits = {'num_bits': num_bits}
    overrides = (
        []
        if num_bits is None
        else [
            {'pattern': f'*.{layer}', 'weight': bits, 'activation': bits}
            for layer in sorted({name.rpartition('.')[2] for name in layers})
        ]
    )
    report = prepare_in_place(
        model.eval(),
        build_qconfig(
            {
                'weight': {'num_bits': 4},
                'activation': {'num_bits': 4},
                'overrides': overrides,
            }
        ),
    )
    calibrate(model, [detection_batch()], forward=run_batch)
    freeze(model)
    rows = {row.name: row for row in report.rows}
    for name in layers:
        assert rows[name].weight_bits == (num_bits or 8)
        assert rows[name].activation_bits == (num_bits or 8)
        layer = model.get_submodule(name)
        # A grid of its own for each logit of each coordinate.
        assert layer.weight_quantizer.scale.numel() == layer.weight.shape[0]
        levels = max(len(row.unique()) for row in layer.weight.flatten(1))
        assert levels <= 2 ** (num_bits or 8)


def test_adapter_sees_logits_and_decodes_them():
    zoo_name, changes, _ = CASES['retinanet']
    model = build(zoo_name, changes).eval()
    batch = detection_batch()
    adapter = build_adapter(model)
    with torch.no_grad():
        heads = adapter.forward_heads(model, copy.deepcopy(batch))
        found = adapter.decode(
            heads, [s.metainfo for s in batch['data_samples']]
        )
    assert heads['1.0'].shape[1] == 9 * 4 * 11
    for one, two in zip(found, boxes_of(model, batch), strict=True):
        torch.testing.assert_close(one.bboxes, two.bboxes)
