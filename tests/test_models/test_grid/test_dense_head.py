"""FCOS, ATSS and GFL over a grid: like the host's, and in detectors."""

import pytest
import torch

pytest.importorskip('mmdet')


import tiny_detectors as tiny
from dense_heads import (
    CASES,
    GIOU,
    LAYERS,
    Outputs,
    grid_detector,
    grid_loss,
)

from taskptq.models.grid import gfl_head as grid_gfl_head
from taskptq.models.grid import head as grid_head


@pytest.fixture(params=CASES)
def case(request):
    """(grid detector, zoo name, names of its further losses)."""
    zoo_name, changes, losses = CASES[request.param]
    return grid_detector(zoo_name, changes), zoo_name, losses


@pytest.mark.slow
def test_trains_two_steps(case):
    model, zoo_name, further = case
    batch = tiny.detection_batch()
    found = tiny.train(model, batch)
    assert found[2] < found[0]
    losses = tiny.losses_of(model, batch)
    assert set(losses) == {'loss_cls', 'loss_bbox', *further}
    layer = model.get_submodule(f'bbox_head.{LAYERS[zoo_name]}')
    assert bool(layer.weight.grad.any())


def test_images_without_objects(case):
    model, zoo_name, _ = case
    model.train()
    batch = tiny.detection_batch(num_boxes=(0, 0))
    loss, parts = model.parse_losses(tiny.losses_of(model, batch))
    places = [
        v.item() for key, v in parts.items() if key not in ('loss', 'loss_cls')
    ]
    assert places == [0.0] * (len(parts) - 2)
    loss.backward()
    layer = model.get_submodule(f'bbox_head.{LAYERS[zoo_name]}')
    assert layer.weight.grad is not None


def catch_messages(monkeypatch):
    messages = []
    for module in (grid_head, grid_gfl_head):
        monkeypatch.setattr(
            module, 'print_log', lambda text, **kw: messages.append(text)
        )
    return messages


@pytest.mark.parametrize(
    ('zoo_name', 'num_intervals'), [('fcos', 16), ('atss', 7), ('gfl', 16)]
)
def test_plain_checkpoint_loads(zoo_name, num_intervals, monkeypatch):
    messages = catch_messages(monkeypatch)
    grid = dict(
        alpha=8.0,
        beta=0.2,
        num_intervals=num_intervals,
        one_sided=zoo_name != 'atss',
    )
    model = grid_detector(zoo_name, dict(loss_bbox=grid_loss(), grid=grid))
    tiny.check_loads(
        model,
        tiny.build(zoo_name, {}),
        [f'bbox_head.{LAYERS[zoo_name]}'],
        messages,
    )


def test_own_checkpoint_loads_whole(case, monkeypatch):
    model, _, _ = case
    messages = catch_messages(monkeypatch)
    state = {
        key: torch.randn_like(value.float()).to(value.dtype)
        for key, value in model.state_dict().items()
    }
    model.load_state_dict(state, strict=True)
    assert messages == []
    assert not any('points' in key or 'project' in key for key in state)
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])


@pytest.mark.slow
@pytest.mark.parametrize('name', ['fcos', 'atss', 'gfl'])
def test_quantizes_and_evaluates(name):
    zoo_name, changes, _ = CASES[name]
    model = grid_detector(zoo_name, changes)
    layer = f'bbox_head.{LAYERS[zoo_name]}'
    rows = tiny.check_quantized(
        model, tiny.detection_batch(), grids=['bbox_head.box_grid']
    )
    assert rows[layer].status == 'quantized'
    assert rows[layer].reason == 'edge layer'


@pytest.mark.parametrize('name', ['fcos-tricks', 'gfl-iou', 'atss-sides'])
def test_cross_entropy_alone_finds_the_boxes(name):
    """Its optimum is where the kept loss of boxes vanishes."""
    zoo_name, changes, _ = CASES[name]
    changes = {**changes, 'loss_bbox': grid_loss(), 'loss_iou': GIOU}
    head = grid_detector(zoo_name, changes).bbox_head
    outputs = Outputs(head, zoo_name)
    optimizer = torch.optim.Adam(outputs.logits, lr=0.6)

    def total(losses, key):
        value = losses[key]
        return sum(value) if isinstance(value, list) else value

    before = total(outputs.losses(head, outputs.logits), 'loss_iou').item()
    for _ in range(90):
        optimizer.zero_grad()
        total(outputs.losses(head, outputs.logits), 'loss_bbox').backward()
        optimizer.step()
    after = total(outputs.losses(head, outputs.logits), 'loss_iou').item()
    assert before > 0.5
    assert after < 0.02 * before


@pytest.mark.parametrize(
    ('zoo_name', 'changes', 'message'),
    [
        ('fcos', dict(loss_bbox=GIOU, loss_iou=GIOU), 'loss_iou is given'),
        ('atss', dict(reg_decoded_bbox=False), 'reg_decoded_bbox=False'),
        ('gfl', dict(grid=dict(alpha=-1.0)), 'alpha=-1'),
    ],
)
def test_impossible_settings_are_named(zoo_name, changes, message):
    with pytest.raises(ValueError, match=message):
        grid_detector(zoo_name, changes)
