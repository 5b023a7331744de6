"""Models of hosts without downloads, and their outputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip('mmseg')
pytest.importorskip('mmdet')

from mmengine.config import Config

from taskptq.bench.coverage.models import (
    build_offline,
    double_precision,
    drawn_batch,
    output_tensors,
    predict,
    thinner,
    with_few_objects,
    without_downloads,
)

SEGMENTOR = {
    'default_scope': 'mmseg',
    'model': {
        'type': 'EncoderDecoder',
        'data_preprocessor': {'type': 'SegDataPreProcessor'},
        'pretrained': 'open-mmlab://resnet18_v1c',
        'backbone': {
            'type': 'ResNetV1c',
            'depth': 18,
            'base_channels': 8,
            'stem_channels': 8,
            'norm_cfg': {'type': 'BN'},
        },
        'decode_head': {
            'type': 'DMHead',
            'filter_sizes': (1, 3),
            'in_channels': 64,
            'in_index': 3,
            'channels': 8,
            'num_classes': 3,
            'norm_cfg': {'type': 'BN'},
        },
        'test_cfg': {'mode': 'whole'},
    },
}


@pytest.fixture(scope='module')
def segmentor() -> nn.Module:
    return build_offline(Config(SEGMENTOR), size=(64, 96))


def test_nothing_is_downloaded_and_norms_are_drawn(segmentor: Any) -> None:
    norm = segmentor.backbone.layer1[0].norm1
    assert norm.running_mean.abs().sum() > 0
    assert not norm._forward_pre_hooks
    assert not segmentor.training


def test_numbers_follow_from_the_seed(segmentor: Any) -> None:
    again = build_offline(Config(SEGMENTOR), size=(64, 96))
    batch = drawn_batch(segmentor, size=(64, 96))
    with torch.no_grad():
        first = output_tensors(segmentor, batch)
        second = output_tensors(again, batch)
    assert [x.shape for x in first] == [(1, 3, 2, 3)]
    assert torch.equal(first[0], second[0])


def test_predictions_are_those_of_the_host(segmentor: Any) -> None:
    batch = drawn_batch(segmentor, size=(64, 96))
    with torch.no_grad():
        (found,) = predict(segmentor, batch)
    assert found.pred_sem_seg.data.shape == (1, 64, 96)


def test_settings_are_copied() -> None:
    settings = {'backbone': [{'init_cfg': {'type': 'Pretrained'}}]}
    assert without_downloads(settings) == {'backbone': [{'init_cfg': None}]}
    assert settings['backbone'][0]['init_cfg'] == {'type': 'Pretrained'}
    norm = {'pretrained': True, 'norm_cfg': {'type': 'MMSyncBN'}}
    assert without_downloads(norm) == {
        'pretrained': False,
        'norm_cfg': {'type': 'BN'},
    }
    queries = {'bbox_head': [{'num_queries': 900, 'num_query': 'all'}]}
    assert thinner(queries) == {
        'bbox_head': [{'num_queries': 40, 'num_query': 'all'}]
    }
    test = {'rpn': {'nms_pre': 1000, 'nms': {'iou_threshold': 0.7}}}
    assert with_few_objects(test) == {
        'rpn': {'nms_pre': 100, 'nms': {'iou_threshold': 0.7}}
    }


def test_masks_are_sampled_in_double_precision() -> None:
    masks = torch.rand(1, 1, 4, 4)
    grid = torch.rand(1, 2, 2, 2, dtype=torch.float64)
    sample = nn.functional.grid_sample
    with double_precision():
        found = nn.functional.grid_sample(masks, grid, align_corners=False)
    assert found.dtype is torch.float64
    assert nn.functional.grid_sample is sample


def test_boxes_are_suppressed_in_double_precision() -> None:
    from mmcv.ops import nms

    boxes = torch.tensor([[0, 0, 2, 2], [0, 0, 2, 2], [5, 5, 6, 6]])
    scores = torch.tensor([0.5, 0.9, 0.7])
    with double_precision():
        dets, kept = nms(boxes.double(), scores.double(), 0.5)
        assert torch.zeros(1).dtype is torch.float64
    assert kept.tolist() == [1, 2]
    assert dets.dtype is torch.float64
    assert torch.zeros(1).dtype is torch.float32
    with pytest.raises(RuntimeError):
        nms(boxes.double(), scores.double(), 0.5)
