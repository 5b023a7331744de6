import numpy as np
import pytest
from onnx import helper

from taskptq.export.onnx.operators import kind_of, operators_of
from taskptq.prepare.grid_plan import MOVER, OTHER, PRODUCT, SUM

from .test_graph import graph_of


@pytest.mark.parametrize(
    ('node', 'kind'),
    [
        (('Conv', ['x', 'c'], {}), PRODUCT),
        (('MaxPool', ['x'], {'kernel_shape': [2, 2]}), MOVER),
        (('Resize', ['x', '', 'c'], {'mode': 'nearest'}), MOVER),
        (('Resize', ['x', '', 'c'], {'mode': 'cubic'}), OTHER),
        (('Add', ['x', 'x2'], {}), SUM),
        (('Add', ['x', 'c'], {}), OTHER),
        (('Softmax', ['x'], {}), OTHER),
    ],
)
def test_kinds(node, kind):
    name, inputs, attributes = node
    made = helper.make_node(name, inputs, ['y'], **attributes)
    graph = graph_of(made, constants=[('c', np.ones(4, np.float32))])
    assert kind_of(graph.nodes[0], graph) == kind
    (operator,) = operators_of(graph, {})
    assert 'c' not in operator.inputs
