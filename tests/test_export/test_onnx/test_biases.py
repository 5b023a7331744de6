import numpy as np
import onnx
import torch
from onnx import helper

from taskptq.export.onnx.biases import integer_biases, spread_biases

from .test_graph import graph_of
from .test_passes import GRID, weight


def test_biases_are_stored_in_steps_of_the_products(exported):
    found = exported('conv')
    graph = onnx.load(str(found.path)).graph
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    bias = found.model.stem.bias.detach().numpy()
    codes = arrays['stem.bias.codes']
    assert codes.dtype == np.int32
    step = arrays['stem.bias.scale']
    assert np.abs(codes * step - bias).max() <= step.max() / 2
    expected = (
        found.model.stem.input_quantizer.scale
        * found.model.stem.weight_quantizer.scale
    )
    np.testing.assert_array_equal(step, expected.numpy())


def test_a_bias_beyond_32_bits_stays_float():
    graph = graph_of(
        helper.make_node('QuantizeLinear', ['x', 'one', 'o'], ['q']),
        helper.make_node('DequantizeLinear', ['q', 'one', 'o'], ['xq']),
        weight(),
        helper.make_node('Gemm', ['xq', 'dq', 'bias'], ['y'], transB=1),
        constants=[
            *GRID,
            ('one', np.array(1e-6, np.float32)),
            ('o', np.array(0, np.uint8)),
            ('bias', np.full(3, 1e4, np.float32)),
        ],
    )
    assert integer_biases(graph) == [graph.nodes[-1].name]
    assert graph.nodes[-1].input[2] == 'bias'


def test_a_bias_behind_moved_values_is_on_their_grid():
    graph = graph_of(
        helper.make_node('QuantizeLinear', ['x', 'one', 'o'], ['q']),
        helper.make_node('DequantizeLinear', ['q', 'one', 'o'], ['xq']),
        helper.make_node('MaxPool', ['xq'], ['pooled'], kernel_shape=[2]),
        helper.make_node('Flatten', ['pooled'], ['moved']),
        weight(),
        helper.make_node('Gemm', ['moved', 'dq', 'bias'], ['y'], transB=1),
        constants=[
            *GRID,
            ('one', np.array(0.5, np.float32)),
            ('o', np.array(0, np.uint8)),
            ('bias', np.full(3, 2.0, np.float32)),
        ],
    )
    assert integer_biases(graph) == []
    step = graph.array('bias.scale')
    codes = graph.array('bias.codes')
    np.testing.assert_allclose(codes * step, 2.0, atol=step.max() / 2)


def test_only_biases_behind_integer_products_are_spread():
    graph = graph_of(
        helper.make_node('MatMul', ['x', 'w'], ['p']),
        helper.make_node('Add', ['p', 'b'], ['y']),
        constants=[('w', torch.ones(4, 4).numpy()), ('b', np.ones(4))],
    )
    assert spread_biases(graph) == 0
