"""Encoder and decoder as files of a runtime, in the place of SAM's."""

import copy

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData
from torch import nn

import sam_detector
from sam_detector.network_parts import points_of
from taskptq.engine.network_parts import guard_rest, parts_of
from taskptq.engine.onnx_export import check_free_sizes
from taskptq.export.onnx import export_onnx
from taskptq.export.runtime import Session, read_onnx

pytest.importorskip('onnxruntime')

HEIGHT, WIDTH = 46, 64
BOXES = torch.tensor([[4.0, 4, 16, 20], [40, 10, 60, 30]])
KINDS = ('gt_box', 'gt_point', 'gt_box_point')


@pytest.fixture(params=[False, True], ids=['plain', 'mask prompts'])
def model(request, sam_config):
    built = MODELS.build(
        {
            'type': 'SAMDetector',
            'sam': {**sam_config, 'box_mask_prompt': request.param},
            'prompts': KINDS,
        }
    ).eval()
    with torch.no_grad():
        # Logits of both signs, not one side of zero everywhere.
        for layer in built.sam.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.3)
    return built


def data_of():
    masks = torch.zeros(2, HEIGHT, WIDTH)
    masks[0, 4:20, 4:16] = 1
    masks[1, 10:30, 40:60] = 1
    sample = DetDataSample(
        metainfo={
            'ori_shape': (HEIGHT, WIDTH),
            'sam_views': [(0, 0, 32, 32), (0, 0, WIDTH, HEIGHT)],
            'sam_view_sizes': [(64, 64), (46, 64)],
        }
    )
    sample.gt_instances = InstanceData(
        bboxes=HorizontalBoxes(BOXES),
        labels=torch.tensor([1, 0]),
        masks=BitmapMasks(masks.byte().numpy(), HEIGHT, WIDTH),
    )
    return {
        'inputs': {'sam': [torch.randn(2, 3, 64, 64)]},
        'data_samples': [sample],
    }


def test_files_predict_the_masks_of_the_model(model, tmp_path):
    data = data_of()
    parts = parts_of(model).parts(data)
    assert [part.name for part in parts] == ['network', 'decoder']
    sessions = {}
    for part in parts:
        path = tmp_path / f'{part.name}.onnx'
        export_onnx(
            part.network,
            part.inputs,
            path,
            input_names=part.input_names,
            output_names=part.output_names,
            dynamic_axes=part.dynamic_axes,
        )
        # Any number of prompts, and of points in each.
        check_free_sizes(part, path)
        sessions[part.name] = Session(read_onnx(path), threads=1)
    host = copy.deepcopy(model)
    parts_of(host).install(sessions)
    guard_rest(host)
    with torch.no_grad():
        expected = model(**copy.deepcopy(data), mode='predict')[0].prompted
        found = host(**copy.deepcopy(data), mode='predict')[0].prompted
    for kind in KINDS:
        torch.testing.assert_close(
            found[kind].iou, expected[kind].iou, rtol=0, atol=1e-4
        )
        differ = found[kind].masks != expected[kind].masks
        assert differ.float().mean() < 1e-3
        assert expected[kind].masks.any()


def test_the_model_fixes_the_size(model):
    assert parts_of(model).image_size({}) == (64, 64)


def test_boxes_are_points_with_labels():
    prompts = sam_detector.Prompts(boxes=BOXES)
    coords, labels = points_of(prompts)
    assert coords[1].tolist() == [[40, 10], [60, 30]]
    assert labels.tolist() == [[2, 3], [2, 3]]
    both = sam_detector.Prompts(
        boxes=BOXES, points=torch.ones(2, 1, 2), labels=torch.ones(2, 1)
    )
    assert points_of(both)[1].tolist() == [[1, 2, 3]] * 2
    alone = sam_detector.Prompts(
        points=torch.ones(2, 1, 2), labels=torch.zeros(2, 1)
    )
    assert points_of(alone)[1].tolist() == [[0, -1]] * 2
