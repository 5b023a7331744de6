"""GFL over a grid: on its own grid it is the host's head."""

import pytest
import torch

pytest.importorskip('mmdet')


import tiny_detectors as tiny
from dense_heads import (
    Outputs,
    assert_same_losses,
    grid_detector,
    grid_loss,
)

from taskptq.models.grid import gfl_head as grid_gfl_head
from taskptq.models.grid import head as grid_head


def catch_messages(monkeypatch):
    messages = []
    for module in (grid_head, grid_gfl_head):
        monkeypatch.setattr(
            module, 'print_log', lambda text, **kw: messages.append(text)
        )
    return messages


def test_gfls_own_grid_loads_whole(monkeypatch):
    messages = catch_messages(monkeypatch)
    grid = dict(alpha=16.0, beta=0.0, num_intervals=16, one_sided=True)
    model = grid_detector('gfl', dict(grid=grid))
    plain = tiny.build('gfl', {}, seed=1)
    model.load_state_dict(plain.state_dict(), strict=True)
    assert messages == []
    batch = tiny.detection_batch()
    for one, two in zip(
        tiny.detections(model.eval(), batch),
        tiny.detections(plain.eval(), batch),
        strict=True,
    ):
        torch.testing.assert_close(one.bboxes, two.bboxes)
        torch.testing.assert_close(one.scores, two.scores)


def test_gfl_is_the_hosts_on_its_grid():
    grid = dict(alpha=16.0, beta=0.0, num_intervals=16, one_sided=True)
    own = grid_detector('gfl', dict(grid=grid)).bbox_head
    host = tiny.build('gfl', {}).bbox_head
    outputs = Outputs(own, 'gfl')
    assert_same_losses(
        outputs.losses(own, outputs.logits),
        outputs.losses(host, outputs.logits),
    )


def test_kept_focal_loss_is_cross_entropy_on_any_grid():
    grid = dict(alpha=10.0, beta=0.3, num_intervals=6, one_sided=True)
    kept = grid_detector(
        'gfl',
        dict(
            grid=grid,
            loss_dfl=dict(type='DistributionFocalLoss', loss_weight=1.0),
        ),
    ).bbox_head
    cross = grid_detector(
        'gfl', dict(grid=grid, loss_dfl=grid_loss())
    ).bbox_head
    outputs = Outputs(kept, 'gfl')
    assert_same_losses(
        outputs.losses(kept, outputs.logits),
        outputs.losses(cross, outputs.logits),
    )
