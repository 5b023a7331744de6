import numpy as np
import onnx
import torch
from onnx import helper
from torch import nn

from taskptq.export.onnx.passes import move_weights

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


def test_products_of_activations_stay_float_and_exact(exported):
    found = exported('transformer')
    names = ' '.join(found.report.checks['float_layers'])
    assert 'layers.0/self_attn/MatMul_1' in names
    assert 'out_proj' not in names


def test_a_weight_that_is_read_twice_is_stored_once(exported):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x):
            return self.layer(self.layer(x).relu())

    torch.manual_seed(0)
    # Verification compares the codes.
    found = exported(Twice().eval(), batches=[torch.randn(2, 5, 8)])
    stored = [
        tensor.name
        for tensor in onnx.load(str(found.path)).graph.initializer
        if tensor.name.endswith('.codes') and len(tensor.dims) == 2
    ]
    assert len(stored) == 1
