import pytest
import torch

pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

from torch import nn

from taskptq.bench.onnx_speed import (
    example_inputs,
    float_layers,
    integer_layers,
    measure,
    open_session,
    optimized_graph,
    reason,
    time_shares,
)
from taskptq.export.runtime import Port, read_onnx


@pytest.fixture(scope='module')
def floating(tmp_path_factory):
    path = tmp_path_factory.mktemp('speed') / 'float.onnx'
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    torch.onnx.export(
        net.eval(),
        (torch.zeros(1, 3, 16, 16),),
        path,
        input_names=['x'],
        output_names=['y'],
        dynamic_axes={'x': {0: 'batch', 2: 'height', 3: 'width'}},
        dynamo=False,
    )
    return path


@pytest.fixture(scope='module')
def integer(floating):
    """The same file by ONNX Runtime's own quantizer."""
    from taskptq.bench.peers import quantize_by_onnxruntime

    path = floating.with_name('integer.onnx')
    inputs = [(torch.randn(1, 3, 16, 16),) for _ in range(3)]
    quantize_by_onnxruntime(floating, path, inputs=inputs, method='ort-minmax')
    return path


def test_files_run_in_turn():
    order = []
    timings = measure(
        {name: lambda name=name: order.append(name) for name in 'ab'},
        warmup=1,
        repeats=3,
    )
    assert order == list('ab' * 4)
    assert [timing.path for timing in timings] == ['a', 'b']
    assert [len(timing.cpu) for timing in timings] == [3, 3]
    assert timings[0].to_dict()['runs'] == 3


def test_free_sizes_must_be_given(floating):
    ports = open_session(floating, threads=1).ports
    (found,) = example_inputs(ports, size=(20, 24), batch=2)
    assert found.shape == (2, 3, 20, 24)
    with pytest.raises(ValueError, match='give --size'):
        example_inputs(ports)
    count = Port(name='n', shape=(None,), dtype=torch.int64)
    assert example_inputs([count], batch=3)[0].dtype == torch.int64


def test_products_of_a_float_file(floating):
    file = read_onnx(floating)
    graph = optimized_graph(file, threads=1)
    left = float_layers(graph, file.proto().graph)
    assert integer_layers(graph) == 0
    assert [layer.why for layer in left] == ['float in the model'] * 2


def test_products_of_an_integer_file(integer):
    file = read_onnx(integer)
    graph = optimized_graph(file, threads=1)
    assert integer_layers(graph) == 2
    assert float_layers(graph, file.proto().graph) == []
    shares = time_shares(file, [torch.randn(1, 3, 16, 16)], threads=1, runs=2)
    assert 'QLinearConv' in shares
    assert sum(shares.values()) == pytest.approx(1)


class Node:
    def __init__(self, op_type, inputs=(), outputs=('y',)):
        self.op_type, self.input, self.output = op_type, inputs, outputs


@pytest.mark.parametrize(
    ('on_grid', 'reader', 'why'),
    [
        ('', 'Relu', 'float in the model'),
        ('x', 'Relu', 'have no grid'),
        ('w', 'Relu', 'its input has no grid'),
        ('xw', 'Relu', 'its output has no grid'),
        ('xw', 'QuantizeLinear', 'no integer form'),
    ],
)
def test_reasons(on_grid, reader, why):
    makers = {name: Node('DequantizeLinear') for name in on_grid}
    found = reason(
        Node('Conv', ('x', 'w')), makers=makers, readers={'y': [Node(reader)]}
    )
    assert why in found
