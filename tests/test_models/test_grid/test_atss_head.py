"""ATSS over a grid: the host's losses and boxes, given the same deltas."""

import pytest
import torch

pytest.importorskip('mmdet')


import tiny_detectors as tiny
from dense_heads import (
    GIOU,
    Outputs,
    assert_same_losses,
    grid_detector,
)


def test_atss_is_the_hosts_given_the_same_deltas():
    own = grid_detector('atss', dict(loss_bbox=GIOU)).bbox_head
    host = tiny.build('atss', {}).bbox_head
    outputs = Outputs(own, 'atss')
    plain = outputs.numbers(scaled=False)
    assert_same_losses(
        outputs.losses(own, outputs.logits), outputs.losses(host, plain)
    )
    for one, two in zip(
        outputs.found(own, outputs.logits),
        outputs.found(host, plain),
        strict=True,
    ):
        torch.testing.assert_close(one.bboxes, two.bboxes)


def test_config_in_the_words_of_mmdet(tmp_path):
    from mmengine.config import Config

    path = tmp_path / 'config.py'
    path.write_text(
        "_base_ = ['mmdet::atss/atss_r50_fpn_1x_coco.py']\n"
        "model = dict(bbox_head=dict(type='taskptq.GridATSSHead',\n"
        '    grid=dict(alpha=8, beta=0.2, num_intervals=12),\n'
        "    loss_bbox=dict(type='taskptq.GridLoss', _delete_=True)))\n"
    )
    head = Config.fromfile(path).model.bbox_head
    assert head.loss_bbox == {'type': 'taskptq.GridLoss'}
    model = tiny.build_settings(Config.fromfile(path).model)
    assert model.bbox_head.atss_reg.out_channels == 4 * 13
