"""Configs of anchor, curve and key-point models: they build and they fit."""

from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config

import lane_detection  # noqa: F401  (registers the classes)
from lane_detection.testing import lane_sample, road_lanes

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
MODEL_NAMES = ('laneatt', 'bezierlanenet', 'ganet', 'condlanenet')
# Millions of weights of the paper-scale models, BezierLaneNet's as published
# (it has 4.10 without the branch that only training needs).
SIZES = {
    'laneatt': (13.2, 13.4),
    'bezierlanenet': (4.0, 4.3),
    'ganet': (14, 15.5),
    'condlanenet': (11.5, 12.5),
}


def load(name):
    cfg = Config.fromfile(CONFIGS / f'{name}.py')
    cfg.model.backbone.init_cfg = None
    return cfg


def build(cfg):
    if cfg.model.get('neck', {}).get('type') == 'BezierNeck':
        pytest.importorskip('torchvision')
    return MODELS.build(cfg.model).eval()


def count(model):
    return sum(p.numel() for p in model.parameters()) / 1e6


def frame(cfg):
    dataset = cfg.test_dataloader.dataset
    while 'datasets' in dataset:
        dataset = dataset.datasets[0]
    return dataset.input_frame


@pytest.mark.parametrize('name', MODEL_NAMES)
def test_small_model(name):
    cfg = load(f'{name}_r18-small_culane-roads')
    model = build(cfg)
    assert count(model) <= 1.5
    size = tuple(frame(cfg).size)
    inputs = torch.rand(2, 3, *size)
    samples = [lane_sample(road_lanes(), img_shape=size) for _ in range(2)]
    outputs = model(inputs, mode='tensor')
    assert tuple(outputs)[: len(model.head_names)] == model.head_names
    assert all(len(value) == 2 for value in outputs.values())
    losses = model.train()(inputs, samples, mode='loss')
    sum(losses.values()).backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None]
    assert idle == []
    found = model.eval()(inputs, samples, mode='predict')
    assert all('pred_lanes' in sample for sample in found)


@pytest.mark.slow
@pytest.mark.parametrize('dataset', ['culane', 'tusimple'])
@pytest.mark.parametrize('name', MODEL_NAMES)
def test_paper_scale_model(name, dataset):
    cfg = load(f'{name}_r18_{dataset}')
    original = Config.fromfile(CONFIGS / f'{name}_r18_{dataset}.py')
    assert original.model.backbone.init_cfg.type == 'Pretrained'
    model = build(cfg)
    least, most = SIZES[name]
    assert least <= count(model) <= most
    size = tuple(frame(cfg).size)
    sample = lane_sample([], img_shape=size)
    with torch.no_grad():
        found = model(torch.rand(1, 3, *size), [sample], mode='predict')
    assert 'points' in found[0].pred_lanes
