import copy
from unittest import mock

import pytest

pytest.importorskip('mmdet')
pytest.importorskip('mmcv.ops')
pytest.importorskip('onnxruntime')

import torch
from exported_models import assert_same, predictions, preprocessed
from mmengine.logging import MMLogger
from tiny_detectors import build, detection_batch, quantized

from taskptq.engine.onnx_export import export_parts
from taskptq.engine.onnx_hook import install_onnx
from taskptq.engine.onnx_metadata import OnnxMetadata
from taskptq.engine.single_images import first_image, one_by_one
from taskptq.export.runtime import Session, read_onnx


def counted(model):
    """A detector whose code counts its images in Python."""

    class Counted(type(model)):
        def extract_feat(self, images):
            found = super().extract_feat(images)
            count = len(images)
            return tuple(x.reshape(count, *x.shape[1:]) for x in found)

    model.__class__ = Counted
    return model


def test_a_batch_that_cannot_be_free_runs_image_by_image(tmp_path):
    model, batch = counted(build('retinanet', {}).eval()), detection_batch()
    quantized(model, batch)
    host = copy.deepcopy(model)
    data = preprocessed(model, batch)
    meta = OnnxMetadata(
        parts=[],
        export='',
        model=type(model).__name__,
        digest='',
        target='onnxruntime',
        input_size=[64, 64],
    )
    out = tmp_path / 'm.onnx'
    log = mock.patch.object(MMLogger.get_current_instance(), 'warning')
    with log as warning, torch.no_grad():
        export_parts(
            model, data, out=out, meta=meta, opset=21, calibration=[data]
        )
    assert 'one image at a time' in warning.call_args[0][0]
    ports = Session(read_onnx(out), threads=1).ports
    assert ports[0].shape == (1, 3, 64, 64)
    install_onnx(host, out)
    found, expected = predictions(host, batch), predictions(model, batch)
    assert [len(x) for x in found] == [len(x) for x in expected]
    scores = slice(1, None, 3)
    assert_same(found[scores], expected[scores], atol=0.02)


def test_batches_are_taken_apart():
    x, y = torch.randn(2, 3), torch.randn(2, 1)
    found = one_by_one([(x, y)])
    assert len(found) == 2
    assert torch.equal(found[1][0], x[1:])
    assert torch.equal(found[1][1], y[1:])
    data = first_image({'inputs': x, 'data_samples': ('a', 'b'), 'c': 1})
    assert len(data['inputs']) == 1
    assert data['data_samples'] == ['a']
    assert data['c'] == 1
