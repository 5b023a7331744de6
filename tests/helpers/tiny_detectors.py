"""Detectors of mmdet's zoo, shrunk to a few thousand weights, and batches."""

import copy
import functools

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData

from taskptq.calibration import calibrate
from taskptq.engine.builder import build_qconfig
from taskptq.engine.pipeline import prepare_in_place, run_batch
from taskptq.export.checkpoint import pack_model, unpack_model
from taskptq.reconstruction import freeze

EIGHT_BITS = {'weight': {'num_bits': 8}, 'activation': {'num_bits': 8}}
NUM_CLASSES = 3
SIZE = 64
BACKBONE = dict(
    depth=18, base_channels=8, frozen_stages=-1, norm_eval=True, init_cfg=None
)
NECK = dict(in_channels=[8, 16, 32, 64], out_channels=16)
DENSE = dict(
    in_channels=16,
    feat_channels=16,
    stacked_convs=1,
    num_classes=NUM_CLASSES,
    norm_cfg=dict(type='GN', num_groups=4),
)
# An untrained model has no score above a useful threshold.
TEST = dict(score_thr=0.0, nms_pre=60, max_per_img=20)
ONE_STAGE = {
    'backbone': BACKBONE,
    'neck': NECK,
    'bbox_head': DENSE,
    'test_cfg': TEST,
}
ANCHORS = dict(octave_base_scale=2)
PROPOSALS = dict(nms_pre=60, max_per_img=30)
ROI_HEAD = dict(in_channels=16, fc_out_channels=32, num_classes=NUM_CLASSES)
TWO_STAGE = {
    'backbone': BACKBONE,
    'neck': dict(NECK, num_outs=4),
    'rpn_head': dict(in_channels=16, feat_channels=16),
    'rpn_head.anchor_generator': dict(scales=[4], strides=[4, 8, 16, 32]),
    'roi_head.bbox_roi_extractor': dict(out_channels=16),
    'train_cfg.rpn_proposal': PROPOSALS,
    'test_cfg.rpn': PROPOSALS,
    'test_cfg.rcnn': dict(score_thr=0.0, max_per_img=20),
}
# name -> config of the zoo, what shrinks it by path
ZOO = {
    'fcos': ('fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py', ONE_STAGE),
    'atss': (
        'atss/atss_r50_fpn_1x_coco.py',
        {**ONE_STAGE, 'bbox_head.anchor_generator': ANCHORS},
    ),
    'gfl': (
        'gfl/gfl_r50_fpn_1x_coco.py',
        {**ONE_STAGE, 'bbox_head.anchor_generator': ANCHORS},
    ),
    'retinanet': (
        '_base_/models/retinanet_r50_fpn.py',
        {
            **ONE_STAGE,
            'bbox_head.anchor_generator': ANCHORS,
            'bbox_head': {k: v for k, v in DENSE.items() if k != 'norm_cfg'},
        },
    ),
    'faster': (
        '_base_/models/faster-rcnn_r50_fpn.py',
        {**TWO_STAGE, 'roi_head.bbox_head': ROI_HEAD},
    ),
    'cascade': (
        '_base_/models/cascade-rcnn_r50_fpn.py',
        {
            **TWO_STAGE,
            **{f'roi_head.bbox_head.{i}': ROI_HEAD for i in range(3)},
        },
    ),
}


def change(settings, path, values):
    """Set values in the dict at a dotted path; list items by their index."""
    for key in path.split('.') if path else ():
        settings = settings[int(key) if key.isdigit() else key]
    for key, value in copy.deepcopy(values).items():
        # Not update(), which would leave arguments of a replaced type.
        settings[key] = value


def build_settings(settings, *, seed=0):
    """Build a detector with seeded random weights."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.manual_seed(seed)
        return MODELS.build(settings)


@functools.cache
def read_zoo(path):
    """Read the model settings of a config of the zoo, once."""
    return Config.fromstring(f"_base_ = ['mmdet::{path}']", '.py').model


def zoo_settings(name, changes):
    """The model settings of a shrunk detector, changed by path."""
    path, shrunk = ZOO[name]
    settings = copy.deepcopy(read_zoo(path))
    for key, values in (*shrunk.items(), *changes.items()):
        change(settings, key, values)
    return settings


def build(name, changes, *, seed=0):
    """A shrunk detector of the zoo."""
    return build_settings(zoo_settings(name, changes), seed=seed)


def sample(boxes, *, size=SIZE):
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


def random_boxes(rng, number, *, size=SIZE):
    start = rng.uniform(0, size - 26, (number, 2))
    extent = rng.uniform(8, 24, (number, 2))
    return np.concatenate([start, start + extent], axis=1)


def detection_batch(*, num_boxes=(4, 4), size=SIZE):
    """Images of noise, each with as many boxes."""
    rng = np.random.default_rng(0)
    inputs = [
        torch.from_numpy(rng.integers(0, 256, (3, size, size), dtype=np.uint8))
        for _ in num_boxes
    ]
    samples = [
        sample(random_boxes(rng, number, size=size), size=size)
        for number in num_boxes
    ]
    return {'inputs': inputs, 'data_samples': samples}


def losses_of(model, batch):
    """Losses by name; samplers and noise draw the same at every call."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - what mmdet's samplers use
    data = model.data_preprocessor(copy.deepcopy(batch), True)
    return model(**data, mode='loss')


def train(model, batch, *, steps=3, lr=0.01):
    """Train on one batch; returns the total loss before each step."""
    model.init_weights()
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    found = []
    for _ in range(steps):
        loss, parts = model.parse_losses(losses_of(model, batch))
        assert all(
            bool(torch.as_tensor(v).isfinite().all()) for v in parts.values()
        ), parts
        found.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return found


def quantized(model, batch, **changes):
    """Prepare, calibrate and freeze; returns the swap report."""
    report = prepare_in_place(
        model.eval(), build_qconfig({**EIGHT_BITS, **changes})
    )
    calibrate(model, [batch], forward=run_batch)
    freeze(model)
    return report


def detections(model, batch):
    """Predicted instances of each image."""
    with torch.no_grad():
        return [
            one.pred_instances for one in model.test_step(copy.deepcopy(batch))
        ]


def check_quantized(model, batch, *, grids):
    """Quantize at 8 bits, through a file as well, and at 2; evaluate."""
    before = detections(model.eval(), batch)
    fresh, rough = copy.deepcopy(model), copy.deepcopy(model)
    report = quantized(model, batch)
    rows = {row.name: row for row in report.rows}
    for name in grids:
        assert rows[name].status == 'float'
        assert rows[name].reason == (
            'box grid: softmax and expectation stay float'
        )
    after = detections(model, batch)
    for one, two in zip(before, after, strict=True):
        assert len(one) > 0
        assert bool(two.bboxes.isfinite().all())
        assert not torch.equal(one.bboxes, two.bboxes)
    payload = pack_model(model, recipe={}, meta={})
    prepare_in_place(fresh, build_qconfig(EIGHT_BITS))
    unpack_model(payload, fresh)
    for one, two in zip(after, detections(fresh, batch), strict=True):
        assert torch.equal(one.bboxes, two.bboxes)
        assert torch.equal(one.scores, two.scores)
    low = {'num_bits': 2}
    quantized(rough, batch, edge_bits=None, weight=low, activation=low)
    for found in detections(rough, batch):
        assert len(found) > 0
        assert bool(found.bboxes.isfinite().all())
    return rows


def check_loads(model, plain, layers, messages):
    """Load a plain detector's weights into all but these layers."""
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.normal_()
    given = plain.state_dict()
    model.load_state_dict(given, strict=True)
    for key, value in model.state_dict().items():
        kept = key.rpartition('.')[0] in layers
        assert torch.equal(value, (before if kept else given)[key]), key
    assert len(messages) == 1
    found = messages[0].partition(':')[0].split(', ')
    assert sorted(found) == sorted(layers)
