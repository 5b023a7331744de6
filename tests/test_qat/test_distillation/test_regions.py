"""Regions that are masks of cells."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

pytest.importorskip('mmdet')

from taskptq.core.settings import SettingError
from taskptq.qat.distillation.regions import REGIONS

FEATURE = torch.arange(16.0).reshape(1, 1, 4, 4)


def rows(region, scene, *, weights=None):
    found = region.rows(scene, {'a': (FEATURE, 10 * FEATURE, weights)})
    return dict(found).get('a')


def test_all_positions():
    found = rows(REGIONS['all'](), None)
    assert torch.equal(found.student[:, 0], torch.arange(16.0))
    assert found.weights is None


@pytest.mark.parametrize(
    ('boxes', 'cells'),
    [
        ([[8.0, 8, 32, 16]], [5, 6, 7]),
        # Smaller than a cell: the one that its centre lies in.
        ([[18.0, 26, 20, 28]], [14]),
        ([[0.0, 0, 7, 7], [24.0, 24, 32, 32]], [0, 15]),
    ],
)
def test_annotations_are_cells_inside_of_boxes(boxes, cells):
    scene = SimpleNamespace(
        annotations=lambda: [torch.tensor(boxes)], stride=lambda _: 8.0
    )
    found = rows(REGIONS['annotations'](), scene)
    assert found.student[:, 0].int().tolist() == cells
    assert torch.equal(found.teacher, 10 * found.student)


def test_a_batch_without_objects_has_no_rows():
    scene = SimpleNamespace(
        annotations=lambda: [torch.zeros(0, 4)], stride=lambda _: 8.0
    )
    assert rows(REGIONS['annotations'](), scene) is None


def test_foreground_and_weights_multiply():
    proxy = torch.zeros(1, 1, 4, 4)
    proxy[..., 1, 2], proxy[..., 3, 3] = 0.5, 0.05
    scene = SimpleNamespace(foreground=lambda: [proxy])
    region = REGIONS['foreground'](threshold=0.1)
    assert rows(region, scene).student.tolist() == [[6.0]]
    weights = torch.full((1, 1, 4, 4), 3.0)
    assert rows(region, scene, weights=weights).weights.tolist() == [3.0]


def test_classes_count_the_same():
    logits = torch.zeros(1, 3, 4, 4)
    logits[:, 0], logits[:, 2, 0, 0] = 1.0, 9.0
    scene = SimpleNamespace(heads={'0': logits})
    found = rows(REGIONS['classes'](), scene)
    assert found.weights.sum().item() == pytest.approx(16)
    assert found.weights[0].item() == pytest.approx(8)
    assert found.weights[1:].sum().item() == pytest.approx(8)


@pytest.mark.parametrize('name', ['annotations', 'foreground', 'classes'])
def test_masks_need_maps(name):
    tokens = {'a': (torch.zeros(1, 5, 3), torch.zeros(1, 5, 3), None)}
    with pytest.raises(ValueError, match="regions='all'"):
        list(REGIONS[name]().rows(None, tokens))


@pytest.mark.parametrize(
    ('name', 'words'),
    [
        ('queries', 'needs a DETR, not Linear'),
        ('classes', 'needs a segmentor, not Linear'),
        ('discrepancy', 'needs a detector'),
    ],
)
def test_other_models_are_refused(name, words):
    with pytest.raises(ValueError, match=words):
        REGIONS[name]().check(nn.Linear(1, 1), None)


@pytest.mark.parametrize(
    ('name', 'settings'),
    [
        ('foreground', {'threshold': 2}),
        ('queries', {'tau': 2}),
        ('queries', {'metric': 'iou'}),
        ('queries', {'matching': 'best'}),
    ],
)
def test_settings_are_checked(name, settings):
    with pytest.raises(SettingError, match=next(iter(settings))):
        REGIONS[name](**settings)
