import copy

import pytest

pytest.importorskip('mmdet')
pytest.importorskip('mmcv.ops')
pytest.importorskip('onnxruntime')

import torch
from exported_models import assert_same, predictions, preprocessed
from tiny_detectors import build, detection_batch

from taskptq.core.setting_error import SettingError
from taskptq.engine import end_to_end
from taskptq.engine.end_to_end import (
    append_decoding,
    check_end_to_end,
    compare,
    returns_boxes,
    without_padding,
)
from taskptq.engine.onnx_decode import decode
from taskptq.engine.onnx_export import export_parts
from taskptq.engine.onnx_hook import install_onnx
from taskptq.engine.onnx_metadata import OnnxMetadata, read_metadata
from taskptq.export.runtime import OnnxFileError, read_onnx


def raw_file(model, data, path):
    meta = OnnxMetadata(
        parts=[],
        export='',
        model=type(model).__name__,
        recipe='float',
        digest='',
        target='onnxruntime',
        input_size=list(data['inputs'].shape[-2:]),
    )
    export_parts(model, data, out=path, meta=meta, opset=21)


@pytest.mark.parametrize('name', ['retinanet', 'gfl'])
def test_a_file_returns_the_boxes_of_the_host(tmp_path, name):
    model, batch = build(name, {}).eval(), detection_batch()
    expected = predictions(model, batch)
    data, path = preprocessed(model, batch), tmp_path / 'm.onnx'
    raw_file(model, data, path)
    words = append_decoding(model, [data], out=path, target='onnxruntime')
    assert words.endswith('boxes are those of the host')
    meta = read_metadata(read_onnx(path))
    assert meta.decoding == {'kind': 'boxes', 'clip': True}
    host = build(name, {}, seed=1)
    install_onnx(host, str(path))
    # Two images in a batch, for which the file runs twice.
    assert_same(predictions(host, batch), expected, atol=1e-3)


def test_a_decoding_that_computes_in_python_is_refused(tmp_path, monkeypatch):
    model, batch = build('retinanet', {}).eval(), detection_batch()
    inner = type(model.bbox_head).predict_by_feat

    def predict_by_feat(self, scores, boxes, **options):
        scale = float(scores[0].mean() / scores[0].std()) + 20
        boxes = [x * scale for x in boxes]
        return inner(self, scores, boxes, **options)

    monkeypatch.setattr(
        type(model.bbox_head), 'predict_by_feat', predict_by_feat
    )
    batch['inputs'][1] = 255 - batch['inputs'][1] // 9
    data, path = preprocessed(model, batch), tmp_path / 'm.onnx'
    raw_file(model, data, path)
    with pytest.raises(OnnxFileError, match='leave end_to_end out, and the'):
        append_decoding(model, [data], out=path, target='onnxruntime')
    assert not path.exists()


def test_one_image_is_too_few(tmp_path):
    model = build('retinanet', {}).eval()
    data, path = preprocessed(model, detection_batch()), tmp_path / 'm.onnx'
    data['inputs'][1] = data['inputs'][0]
    raw_file(model, data, path)
    with pytest.raises(OnnxFileError, match='two images of other content'):
        append_decoding(model, [data], out=path, target='onnxruntime')
    assert not path.exists()


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        ('faster', {}, 'is no one-stage detector'),
        ('retinanet', {'target': 'tensorrt'}, 'tensorrt was ever run'),
        ('retinanet', {'dynamic': True}, 'give --size'),
        ('retinanet', {'images': 0}, '--num-images of at least 2'),
    ],
)
def test_what_cannot_decode_is_refused(name, options, message):
    plain = {'target': 'onnxruntime', 'dynamic': None, 'images': 1}
    with pytest.raises(SettingError, match=message):
        check_end_to_end(build(name, {}), **{**plain, **options})


def boxes(count, *, shift=0.0):
    corners = torch.arange(4.0 * count).reshape(-1, 4) * 10 + shift
    return corners, torch.linspace(0.9, 0.5, count), torch.zeros(count).long()


def test_a_few_boxes_may_differ(tmp_path):
    whole = boxes(20)
    fewer = tuple(x[:19] for x in whole)
    words = compare([whole, whole], [fewer, boxes(20, shift=0.2)], out='m')
    assert words.startswith('19 of 20, 20 of 20')
    with pytest.raises(OnnxFileError, match='17 boxes in image 1, the host'):
        compare([whole] * 2, [whole, tuple(x[:17] for x in whole)], out='m')
    with pytest.raises(OnnxFileError, match='host 3, and 0 are the same'):
        compare([boxes(3)], [boxes(3, shift=2.0)], out='m')
    assert compare([boxes(0)], [boxes(0)], out='m').startswith('0 of 0')


def test_boxes_end_with_the_image():
    found = {
        'boxes': torch.tensor([[-2.0, 1.0, 30.0, 9.0], [25.0, 1, 28, 9]]),
        'scores': torch.tensor([0.9, 0.8]),
        'labels': torch.tensor([1, 0]),
    }
    inside = without_padding(found, (6, 20))
    assert inside['boxes'].tolist() == [[0, 1, 20, 6]]
    assert inside['labels'].tolist() == [1]
    # As numpy does it, for files without a host.
    arrays = {name: tensor.numpy() for name, tensor in found.items()}
    options = {
        'image_shape': (6, 20),
        'scale': (2.0, 1.0),
        'padded_shape': (32, 32),
        'original_shape': (6, 10),
    }
    kept = decode(arrays, {'kind': 'boxes', 'clip': True}, **options)
    assert kept['boxes'].tolist() == [[0, 1, 10, 6]]
    plain = decode(arrays, {'kind': 'boxes', 'clip': False}, **options)
    assert plain['boxes'].tolist() == [[-1, 1, 15, 9], [12.5, 1, 14, 9]]


def test_how_a_file_says_it():
    assert returns_boxes({'kind': 'boxes', 'clip': False})
    assert not returns_boxes({'kind': 'anchors'})
    assert not returns_boxes(None)


def test_the_frame_of_a_host_that_does_not_clip(monkeypatch):
    model = build('retinanet', {}).eval()
    data = preprocessed(model, detection_batch())
    with torch.no_grad():
        raw = model.bbox_head(model.extract_feat(data['inputs'][:1]))
    names = ('cls_scores', 'bbox_preds')
    outputs = {
        f'{name}.{level}': tensor
        for name, levels in zip(names, raw, strict=True)
        for level, tensor in enumerate(levels)
    }
    assert end_to_end.clips(model.bbox_head, outputs)
    free = copy.deepcopy(model.bbox_head)
    free.bbox_coder.clip_border = False
    assert not end_to_end.clips(free, outputs)
