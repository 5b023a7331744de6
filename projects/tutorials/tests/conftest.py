"""Small projects with drawn data, on which the tutorials' commands run."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from quick_runner import quick_runner  # noqa: F401 - a fixture

SIZE = 64
CLASSES = ('disk', 'square')

DETECTOR = """
_base_ = ['mmdet::yolox/yolox_nano_8xb8-300e_coco.py']
model = dict(
    backbone=dict(
        widen_factor=0.125,
        arch_ovewrite=[
            [64, 128, 1, True, False],
            [128, 256, 1, True, False],
            [256, 512, 1, False, True],
        ],
        out_indices=(2, 3),
    ),
    neck=dict(in_channels=[32, 64], out_channels=16),
    bbox_head=dict(
        num_classes=2,
        in_channels=16,
        feat_channels=16,
        stacked_convs=1,
        strides=(8, 16),
    ),
)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(
        type='Pad',
        pad_to_square=True,
        pad_val=dict(img=(114.0, 114.0, 114.0)),
    ),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=(
            'img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'
        ),
    ),
]
shared = dict(metainfo=dict(classes=('disk', 'square')))
train_set = dict(
    data_root='data/',
    ann_file='train.json',
    data_prefix=dict(img='train/'),
    **shared,
)
val_set = dict(
    data_root='data/',
    ann_file='val.json',
    data_prefix=dict(img='val/'),
    pipeline=test_pipeline,
    **shared,
)
train_dataloader = dict(dataset=dict(dataset=train_set))
val_dataloader = dict(
    num_workers=0, persistent_workers=False, dataset=val_set
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file='data/val.json')
test_evaluator = val_evaluator
"""

SEGMENTOR = """
_base_ = [
    __import__('mmseg').__path__[0]
    + '/.mim/configs/segformer/'
    + 'segformer_mit-b0_8xb2-160k_ade20k-512x512.py'
]
model = dict(
    pretrained=None,
    backbone=dict(embed_dims=8, num_layers=[1, 1, 1, 1]),
    decode_head=dict(
        in_channels=[8, 16, 40, 64], channels=16, num_classes=3
    ),
)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
shared = dict(
    type='BaseSegDataset',
    data_root='data/',
    metainfo=dict(classes=('ground', 'disk', 'square')),
    img_suffix='.png',
    reduce_zero_label=False,
)
train_dataloader = dict(
    dataset=dict(
        data_prefix=dict(img_path='train', seg_map_path='train_maps'),
        **shared,
    )
)
val_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        data_prefix=dict(img_path='val', seg_map_path='val_maps'),
        pipeline=test_pipeline,
        **shared,
    ),
)
test_dataloader = val_dataloader
"""


def draw(rng):
    """Return an image, its map of classes and its boxes with labels."""
    image = rng.integers(0, 60, (SIZE, SIZE, 3)).astype(np.uint8)
    classes = np.zeros((SIZE, SIZE), np.uint8)
    boxes = []
    for label in (0, 1):
        radius = int(rng.integers(7, 12))
        x, y = rng.integers(radius, SIZE - radius, 2).tolist()
        color = rng.integers(120, 255, 3).tolist()
        for canvas, value in ((image, color), (classes, label + 1)):
            if label:
                corner = (x - radius, y - radius), (x + radius, y + radius)
                cv2.rectangle(canvas, *corner, value, -1)
            else:
                cv2.circle(canvas, (x, y), radius, value, -1)
        box = [x - radius, y - radius, 2 * radius + 1, 2 * radius + 1]
        boxes.append((label, box))
    return image, classes, boxes


def draw_split(folder, split, *, count, seed):
    """Write images, maps, and annotations in COCO's form."""
    rng = np.random.default_rng(seed)
    images, annotations = [], []
    for kind in (split, f'{split}_maps'):
        (folder / kind).mkdir(parents=True)
    for number in range(count):
        image, classes, boxes = draw(rng)
        name = f'{number:03}.png'
        cv2.imwrite(str(folder / split / name), image)
        cv2.imwrite(str(folder / f'{split}_maps' / name), classes)
        images.append(dict(id=number, file_name=name, width=SIZE, height=SIZE))
        annotations += [
            dict(
                id=2 * number + label,
                image_id=number,
                category_id=label,
                bbox=box,
                area=box[2] * box[3],
                iscrowd=0,
            )
            for label, box in boxes
        ]
    content = dict(
        images=images,
        annotations=annotations,
        categories=[
            dict(id=label, name=name) for label, name in enumerate(CLASSES)
        ],
    )
    (folder / f'{split}.json').write_text(json.dumps(content))


def build(config, *, scope):
    """Build a model of a host with random weights, seeded."""
    if scope == 'mmdet':
        from mmdet.registry import MODELS
        from mmdet.utils import register_all_modules
    else:
        from mmseg.registry import MODELS
        from mmseg.utils import register_all_modules
    register_all_modules()
    torch.manual_seed(0)
    return MODELS.build(config.model)


@pytest.fixture
def make_project(tmp_path, monkeypatch):
    """Return a function that makes a host's project and moves into it."""

    def make(scope):
        pytest.importorskip(scope)
        text = DETECTOR if scope == 'mmdet' else SEGMENTOR
        Path(tmp_path / 'my_config.py').write_text(text)
        draw_split(tmp_path / 'data', 'train', count=16, seed=1)
        draw_split(tmp_path / 'data', 'val', count=4, seed=2)
        monkeypatch.chdir(tmp_path)
        model = build(Config.fromfile('my_config.py'), scope=scope)
        torch.save({'state_dict': model.state_dict()}, 'float.pth')
        return tmp_path

    before = DefaultScope.get_current_instance()
    yield make
    if before is None:
        DefaultScope._instance_dict.clear()
