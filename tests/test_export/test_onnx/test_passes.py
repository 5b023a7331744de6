import numpy as np
import onnx
import torch
from onnx import helper

from taskptq.export.onnx.passes import (
    integer_biases,
    move_weights,
    spread_biases,
)

from .test_graph import graph_of

CODES = np.arange(-6, 6, dtype=np.int8).reshape(3, 4)
GRID = [
    ('w', CODES),
    ('s', np.array([1, 2, 3], np.float32)),
    ('z', np.zeros(3, np.int8)),
]


def weight(**attributes):
    return helper.make_node(
        'DequantizeLinear', ['w', 's', 'z'], ['dq'], axis=0, **attributes
    )


def test_a_transposed_weight_becomes_transposed_codes():
    graph = graph_of(
        weight(),
        helper.make_node('Transpose', ['dq'], ['t'], perm=[1, 0]),
        helper.make_node('MatMul', ['x', 't'], ['y']),
        constants=GRID,
    )
    assert move_weights(graph) == 1
    made = graph.producer['t']
    assert made.op_type == 'DequantizeLinear'
    np.testing.assert_array_equal(graph.array(made.input[0]), CODES.T)
    np.testing.assert_array_equal(graph.array(made.input[1]), [1, 2, 3])
    assert made.attribute[0].i == 1


def test_parts_of_a_weight_get_their_parts_of_the_grid():
    graph = graph_of(
        weight(),
        helper.make_node('Split', ['dq', 'sizes'], ['a', 'b'], axis=0),
        helper.make_node('MatMul', ['x', 'a'], ['y']),
        constants=[*GRID, ('sizes', np.array([1, 2]))],
    )
    move_weights(graph)
    first = graph.producer['a']
    np.testing.assert_array_equal(graph.array(first.input[0]), CODES[:1])
    second = graph.producer['b']
    np.testing.assert_array_equal(graph.array(second.input[1]), [2, 3])


def test_a_move_that_mixes_channels_stays():
    graph = graph_of(
        weight(),
        helper.make_node('Reshape', ['dq', 'shape'], ['t']),
        helper.make_node('MatMul', ['x', 't'], ['y']),
        constants=[*GRID, ('shape', np.array([2, 6]))],
    )
    assert move_weights(graph) == 0
    assert [n.op_type for n in graph.nodes][1] == 'Reshape'


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


def test_only_biases_behind_integer_products_are_spread():
    graph = graph_of(
        helper.make_node('MatMul', ['x', 'w'], ['p']),
        helper.make_node('Add', ['p', 'b'], ['y']),
        constants=[('w', torch.ones(4, 4).numpy()), ('b', np.ones(4))],
    )
    assert spread_biases(graph) == 0


def test_products_of_activations_stay_float_and_exact(exported):
    found = exported('transformer')
    names = ' '.join(found.report.checks['float_layers'])
    assert 'layers.0/self_attn/MatMul_1' in names
    assert 'out_proj' not in names
