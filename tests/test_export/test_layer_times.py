"""Single layers are timed in ONNX Runtime."""

import pytest
import torch
from torch import nn

pytest.importorskip('onnxruntime')

from taskptq.export import layer_times
from taskptq.export.layer_times import measure_layers, record_calls
from taskptq.export.runtime import OnnxFileError
from taskptq.prepare import QConfig, prepare

QCONFIG = dict(weight=dict(num_bits=8), activation=dict(num_bits=8))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding='same', groups=8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.depthwise(self.depthwise(self.stem(x)))
        return self.head(x.flatten(2).transpose(1, 2))


def run(model, batch):
    return model(batch)


@pytest.fixture
def model():
    model = Net().eval()
    prepare(model, QConfig.from_dict(QCONFIG))
    return model


def test_calls_are_of_one_image(model):
    batch = torch.zeros(2, 3, 16, 16)
    calls = record_calls(model, batch, forward=run, num_images=2)
    ((stem, once),) = calls['stem'].items()
    assert (stem.input_shape, once) == ((1, 3, 16, 16), 1)
    assert dict(stem.attributes)['pads'] == (1, 1, 1, 1)
    ((same, twice),) = calls['depthwise'].items()
    assert (same.input_shape, twice) == ((1, 8, 8, 8), 2)
    assert dict(same.attributes)['pads'] == (1, 1, 1, 1)
    ((head, _),) = calls['head'].items()
    assert (head.input_shape, head.weight_shape) == ((64, 8), (4, 8))


def test_every_layer_has_times_in_integers_and_floats(model):
    batch = torch.zeros(2, 3, 16, 16)
    table = measure_layers(model, batch, forward=run, num_images=2)
    assert set(table['layers']) == {'stem', 'depthwise', 'head'}
    for times in table['layers'].values():
        assert set(times) == {'8x8', 'floatxfloat'}
        assert all(value >= 0 for value in times.values())
    assert table['float_ms'] > 0
    assert (table['runtime'], table['threads']) == ('onnxruntime', 1)


@pytest.mark.parametrize(
    ('key', 'expected'),
    [
        ('8x8', {'QLinearConv', 'QLinearMatMul'}),
        ('floatxfloat', {'Conv', 'MatMul', 'DequantizeLinear'}),
        ('plain', {'Conv', 'MatMul'}),
    ],
)
def test_the_runtime_computes_what_is_timed(model, tmp_path, key, expected):
    onnx = pytest.importorskip('onnx')
    onnxruntime = pytest.importorskip('onnxruntime')
    batch = torch.zeros(1, 3, 16, 16)
    calls = record_calls(model, batch, forward=run, num_images=1)
    found = set()
    for (call,) in calls.values():
        options = layer_times._options(key, threads=1)
        options.optimized_model_filepath = str(tmp_path / 'optimized.onnx')
        options.graph_optimization_level = (
            onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        )
        data = layer_times._graph(call, key)
        onnxruntime.InferenceSession(data, options)
        graph = onnx.load(options.optimized_model_filepath).graph
        found |= {node.op_type for node in graph.node}
    assert expected <= found
    assert ('QLinearConv' in found) == (key == '8x8')


def test_without_the_runtime_there_is_one_sentence(model, monkeypatch):
    def missing(name):
        raise OnnxFileError(f'this needs {name}, which is not installed')

    monkeypatch.setattr(layer_times, 'runtime_package', missing)
    with pytest.raises(OnnxFileError, match='this needs onnx'):
        measure_layers(model, torch.zeros(1, 3, 16, 16), forward=run)
