import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from taskptq.export.onnx.noise_floor import last_place_floor, sqnr


def write(path, *, weight_scale):
    """Write y = quantized(code 1 times the scale), on a grid of step 1."""
    values = {
        'code': np.int8([[1]]),
        'w.scale': np.float32(weight_scale),
        'w.point': np.int8(0),
        'a.scale': np.float32(1),
        'a.point': np.uint8(0),
    }
    nodes = [
        ('DequantizeLinear', ['code', 'w.scale', 'w.point'], 'w'),
        ('MatMul', ['x', 'w'], 'product'),
        ('QuantizeLinear', ['product', 'a.scale', 'a.point'], 'codes'),
        ('DequantizeLinear', ['codes', 'a.scale', 'a.point'], 'y'),
    ]
    ports = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1])
        for name in 'xy'
    ]
    graph = helper.make_graph(
        [helper.make_node(op, reads, [out]) for op, reads, out in nodes],
        'graph',
        ports[:1],
        ports[1:],
        [numpy_helper.from_array(np.array(v), k) for k, v in values.items()],
    )
    opsets = [helper.make_opsetid('', 17)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    onnx.save(model, str(path))
    return {'x': np.ones((1, 1), np.float32)}


BELOW = float(np.nextafter(np.float32(2.5), np.float32(0)))


@pytest.mark.parametrize(
    ('scale', 'at_tie'), [(2.5, True), (BELOW, True), (2.4, False)]
)
def test_only_ties_make_noise(tmp_path, scale, at_tie):
    path = tmp_path / 'm.onnx'
    feeds = write(path, weight_scale=scale)
    before = path.read_bytes()
    (floor,) = last_place_floor(path, feeds)
    # 2.5, and the place below, round to 2; two places more round to 3.
    expected = 20 * math.log10(2) if at_tie else math.inf
    assert floor == pytest.approx(expected)
    assert path.read_bytes() == before


def test_scales_of_activations_stay(tmp_path):
    # A moved step of 1 would change the output, which is a multiple of it.
    path = tmp_path / 'm.onnx'
    feeds = write(path, weight_scale=100)
    assert last_place_floor(path, feeds) == [math.inf]


def test_a_quantized_network_has_a_floor_for_each_output(exported):
    found = exported('conv', qconfig={'activation': {'num_bits': 4}})
    (floor,) = last_place_floor(found.path, {'x': found.x.numpy()})
    assert floor > 20


def test_signal_to_noise():
    x = np.array([3.0, 4.0])
    assert sqnr(x, x) == math.inf
    assert sqnr(x, x + 0.5) == pytest.approx(10 * math.log10(25 / 0.5))
    assert sqnr(x, x * math.nan) == -math.inf
