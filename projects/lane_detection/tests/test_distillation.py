"""A float teacher in the training of lane detectors."""

import copy

import pytest
import torch

from lane_detection.testing import (
    lane_sample,
    road_lanes,
    tiny_backbone,
    tiny_detector,
    tiny_image,
)
from taskptq.qat.distillation import Distillation, DistillationConfig
from taskptq.qat.teacher import make_teacher

SIZE = (144, 400)
VIEWS = [
    dict(
        taps='neck',
        loss='squared_feature',
        regions=dict(type='foreground', threshold=0.0),
        weights='foreground',
    ),
    dict(taps='backbone', loss='gram'),
]


def build(views):
    """Return a student near its teacher, and what distills it."""
    torch.manual_seed(0)
    model = tiny_detector(
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
        test_cfg={'score_thr': 0.5, 'seed_distance': 1.5},
    ).eval()
    teacher = make_teacher(model)
    student = make_teacher(model).requires_grad_(True)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    added = Distillation(
        student,
        teacher,
        config=DistillationConfig.from_dict({'views': views}),
    )
    return student, added


def test_lanes_are_distilled_where_the_teacher_sees_them():
    student, added = build(VIEWS)
    sample = lane_sample(road_lanes(), img_shape=SIZE)
    images = tiny_image(sample)[None]
    own = student(images, [copy.deepcopy(sample)], mode='loss')
    added.attach()
    found = student(images, [copy.deepcopy(sample)], mode='loss')
    added.detach()
    terms = {name: v for name, v in found.items() if name not in own}
    assert list(terms) == [
        'loss_squared_feature',
        'loss_gram',
    ]
    assert all(value.item() > 0 for value in terms.values())
    terms['loss_squared_feature'].backward()
    assert next(student.neck.parameters()).grad is not None
    for name, value in own.items():
        torch.testing.assert_close(found[name], value)


def test_a_tap_that_the_loss_does_not_run_is_named():
    """CondLaneNet's loss computes its maps past the head's forward."""
    student, added = build(
        [dict(taps='logits', loss=dict(type='feature_divergence'))]
    )
    sample = lane_sample(road_lanes(), img_shape=SIZE)
    added.attach()
    with pytest.raises(ValueError, match='logits gave no tensor'):
        student(tiny_image(sample)[None], [sample], mode='loss')
    added.detach()
