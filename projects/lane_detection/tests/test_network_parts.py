"""Heads of lane detectors as files of a runtime."""

import copy

import pytest
import torch

from lane_detection.testing import (
    lane_sample,
    road_lanes,
    tiny_backbone,
    tiny_detector,
)
from taskptq.engine.network_parts import guard_rest, parts_of
from taskptq.engine.onnx_export import check_free_sizes
from taskptq.export.onnx import export_onnx
from taskptq.export.runtime import Session, read_onnx

pytest.importorskip('onnxruntime')

SIZE = (64, 128)
FPN = dict(type='FPN', in_channels=[16, 32, 64], out_channels=16, num_outs=3)
# Head and neck of each; the backbone has strides 8, 16 and 32.
MODELS = {
    'condlane': (
        dict(
            type='CondLaneHead',
            in_channels=16,
            num_seeds=3,
            mask_channels=8,
            img_size=SIZE,
        ),
        FPN,
    ),
    'ganet': (dict(type='GANetHead', in_channels=16), FPN),
    'lstr': (dict(type='LSTRHead', in_channels=64), None),
    'bezier': (
        dict(type='BezierLaneHead', in_channels=64),
        dict(type='BezierNeck', in_channels=64),
    ),
}


@pytest.mark.parametrize('name', list(MODELS))
def test_a_file_draws_the_lanes_of_the_model(name, tmp_path):
    head, neck = MODELS[name]
    model = tiny_detector(head, backbone=tiny_backbone(), neck=neck).eval()
    samples = [lane_sample(road_lanes(), img_shape=SIZE) for _ in range(3)]
    images = torch.rand(3, 3, *SIZE)
    data = {'inputs': images[:2], 'data_samples': samples[:2]}
    (part,) = parts_of(model).parts(data)
    assert set(part.output_names) >= set(model.head_names)
    path = tmp_path / 'lanes.onnx'
    export_onnx(
        part.network,
        part.inputs,
        path,
        input_names=part.input_names,
        output_names=part.output_names,
        dynamic_axes=part.dynamic_axes,
    )
    check_free_sizes(part, path)
    host = copy.deepcopy(model)
    parts_of(host).install({'network': Session(read_onnx(path), threads=1)})
    guard_rest(host)
    with torch.no_grad():
        expected = model.forward_heads(images)
        found = host.forward_heads(images)
    for key in model.head_names:
        torch.testing.assert_close(
            found[key], expected[key], rtol=1e-3, atol=1e-3
        )
    lanes = host.predict(images, samples)
    assert all('pred_lanes' in sample for sample in lanes)
