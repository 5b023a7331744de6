"""Detectors of configs/small_objects, shrunk, and batches of noise."""

from pathlib import Path

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData

FOLDER = Path(__file__).resolve().parents[1] / 'configs' / 'small_objects'
SIZE = 64
BACKBONE = {
    'model.backbone.base_channels': 8,
    'model.neck.in_channels': [8, 16, 32],
    'model.neck.out_channels': 32,
}
TWO_STAGE = {
    **BACKBONE,
    'model.rpn_head.in_channels': 32,
    'model.rpn_head.feat_channels': 32,
    'model.roi_head.bbox_roi_extractor.out_channels': 32,
    'model.roi_head.bbox_head.in_channels': 32,
    'model.roi_head.bbox_head.fc_out_channels': 32,
    'model.test_cfg.rpn.max_per_img': 20,
    # An untrained model has no score above a useful threshold.
    'model.test_cfg.rcnn.score_thr': 0.0,
    'model.test_cfg.rcnn.max_per_img': 10,
}
DENSE = {
    **BACKBONE,
    'model.bbox_head.in_channels': 32,
    'model.bbox_head.feat_channels': 32,
    'model.test_cfg.score_thr': 0.0,
    'model.test_cfg.max_per_img': 10,
}


def load(name):
    """A config of the folder, by its stem."""
    return Config.fromfile(FOLDER / f'{name}.py')


def build(name, *, seed=0):
    """The shrunk detector of a nuclei config, with seeded weights."""
    cfg = load(name)
    cfg.merge_from_dict(TWO_STAGE if 'faster' in name else DENSE)
    with DefaultScope.overwrite_default_scope('mmdet'):
        torch.manual_seed(seed)
        model = MODELS.build(cfg.model)
        model.init_weights()
        return model


def sample(boxes, *, size=SIZE):
    """A DetDataSample with boxes of one class."""
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
    labels = torch.zeros(len(boxes), dtype=torch.long)
    found.gt_instances = InstanceData(
        bboxes=HorizontalBoxes(boxes, dtype=torch.float32), labels=labels
    )
    found.ignored_instances = InstanceData(
        bboxes=HorizontalBoxes(torch.zeros(0, 4)), labels=labels[:0]
    )
    return found


def noise_batch(*, count=2, size=SIZE, seed=0):
    """Images of noise with four bright squares each."""
    rng = np.random.default_rng(seed)
    inputs, samples = [], []
    for _ in range(count):
        image = rng.integers(0, 60, (3, size, size), dtype=np.uint8)
        start = rng.integers(0, size - 20, (4, 2))
        end = start + rng.integers(8, 18, (4, 2))
        for (x0, y0), (x1, y1) in zip(start, end, strict=True):
            image[:, y0:y1, x0:x1] = 220
        inputs.append(torch.from_numpy(image))
        samples.append(sample(np.concatenate([start, end], axis=1), size=size))
    return {'inputs': inputs, 'data_samples': samples}
