import numpy as np
import pytest
from onnx import helper

from taskptq.export.onnx.equal_grids import merge_equal_grids

from .test_graph import graph_of


def test_readers_with_equal_grids_share_one():
    other = np.array(2, np.float32)
    grids = [('s', np.array(1, np.float32)), ('t', other), ('u', other * 0.5)]
    nodes = []
    for name in ('s', 't', 'u'):
        nodes += [
            helper.make_node('QuantizeLinear', ['x', name, 'z'], [f'q{name}']),
            helper.make_node(
                'DequantizeLinear', [f'q{name}', name, 'z'], [f'd{name}']
            ),
        ]
    graph = graph_of(
        *nodes,
        helper.make_node('Concat', ['ds', 'dt', 'du'], ['y'], axis=0),
        constants=[*grids, ('z', np.array(0, np.uint8))],
    )
    # Those of s and u are equal.
    assert merge_equal_grids(graph) == 2
    assert list(graph.nodes[-1].input) == ['ds', 'dt', 'ds']


@pytest.mark.parametrize('other', [False, True])
def test_values_on_a_grid_keep_their_codes_on_the_same_grid(other):
    scale = 's' if not other else 'o'
    graph = graph_of(
        helper.make_node('QuantizeLinear', ['x', 's', 'z'], ['q']),
        helper.make_node('DequantizeLinear', ['q', 's', 'z'], ['out']),
        helper.make_node('QuantizeLinear', ['out', scale, 'z'], ['q2']),
        helper.make_node('DequantizeLinear', ['q2', scale, 'z'], ['d2']),
        helper.make_node('Relu', ['d2'], ['y']),
        constants=[
            ('s', np.array(0.5, np.float32)),
            ('o', np.array(0.25, np.float32)),
            ('z', np.array(0, np.uint8)),
        ],
        outputs=('out', 'y'),
    )
    assert merge_equal_grids(graph) == (0 if other else 1)
    readers = [n for n in graph.nodes if n.output[0] == 'd2']
    assert readers[0].input[0] == ('q2' if other else 'q')
