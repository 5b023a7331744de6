import pytest

pytest.importorskip('mmdet')
pytest.importorskip('mmcv.ops')

from tiny_detectors import build, detection_batch

from taskptq.engine.network_parts import parts_of
from taskptq.engine.onnx_inputs import (
    at_size,
    preprocessed,
    random_batch,
    recorded_inputs,
)


def test_batches():
    data = random_batch((32, 48))
    assert data['inputs'].shape == (2, 3, 32, 48)
    larger = at_size(data, (64, 64))
    assert larger['inputs'].shape[-2:] == (64, 64)
    assert larger['data_samples'][0].img_shape == (64, 64)
    assert data['data_samples'][0].img_shape == (32, 48)
    with pytest.raises(ValueError, match='the model fixes the size'):
        at_size({'inputs': {}}, (1, 1))


def test_inputs_of_every_part_are_recorded():
    model = build('faster', {}).eval()
    data = random_batch((64, 96))
    parts = parts_of(model).parts(data)
    runs = {part.name: part.network.named_outputs for part in parts}
    found = recorded_inputs(model, [data, data], runs, limit=5)
    assert [len(calls) for calls in found.values()] == [2, 2]
    assert found['roi_head.bbox_head'][0][0].shape[0] == 5


def test_a_lone_image_is_doubled():
    model = build('retinanet', {}).eval()
    batch = detection_batch()
    one = {key: value[:1] for key, value in batch.items()}
    data = preprocessed(model, one)
    assert len(data['inputs']) == len(data['data_samples']) == 2
