import dataclasses
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip('mmdet')
pytest.importorskip('mmcv.ops')
pytest.importorskip('onnxruntime')

from exported_models import predictions
from tiny_detectors import build, detection_batch

from taskptq.bench import peers
from taskptq.bench.peers import PEERS, is_peer, measure_peer, quantizer_of
from taskptq.bench.table import Row

ROW = Row(method='ort-minmax', bits='w8a8', seed=0, recipe='')


class Measurement:
    """A float detector and two batches; scores how much boxes move."""

    commit = 'c'

    def __init__(self, name):
        self.model = build(name, {}).eval()
        self.batch = detection_batch()
        self.expected = predictions(self.model, self.batch)
        self.table = SimpleNamespace(command=lambda row: f'run {row.name}')

    def images(self, row):
        return None

    def batches(self, images):
        return [self.batch, detection_batch(num_boxes=(3, 3))]

    def evaluate(self, model):
        found = predictions(model, self.batch)
        moved = (found[1].mean() - self.expected[1].mean()).abs()
        self.same = torch.equal(found[0], self.expected[0])
        return {'moved': float(moved)}, 0.1

    def scores(self, metrics):
        return {'value': metrics['moved'], 'metrics': metrics}


@pytest.mark.parametrize(
    ('name', 'method'),
    [('retinanet', 'ort-percentile'), ('faster', 'ort-minmax')],
)
def test_a_row_of_onnxruntime(name, method):
    measurement = Measurement(name)
    row = dataclasses.replace(ROW, method=method)
    found = measure_peer(measurement, row)
    assert found['method'] == method
    assert found['tool'].startswith('onnxruntime ')
    assert found['command'] == f'run {row.name}'
    assert found['file_bytes'] > 1000
    # Quantized, but still the same detector.
    assert not measurement.same
    assert found['value'] < 0.05


def test_methods():
    assert all(map(is_peer, PEERS))
    assert not is_peer('minmax')
    with pytest.raises(ValueError, match='method'):
        quantizer_of('minmax')


def test_other_bits_are_refused():
    row = dataclasses.replace(ROW, bits='w4a8')
    with pytest.raises(ValueError, match='ort-minmax quantizes to w8a8'):
        measure_peer(Measurement('retinanet'), row)


def test_feeds_are_arrays_by_name():
    (found,) = peers.feeds(['a', 'b'], [(torch.ones(2), torch.zeros(3))])
    assert found['a'].tolist() == [1, 1]
    assert found['b'].shape == (3,)
