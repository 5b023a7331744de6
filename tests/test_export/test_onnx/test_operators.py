import numpy as np
import pytest
from onnx import helper

from taskptq.export.onnx.emission import DOMAIN, WEIGHT
from taskptq.export.onnx.operators import kind_of, operators_of
from taskptq.prepare.grid_plan import MOVER, OTHER, PRODUCT, SUM

from .test_graph import graph_of


@pytest.mark.parametrize(
    ('node', 'kind'),
    [
        (('Conv', ['x', 'c'], {}), OTHER),
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


def test_a_convolution_is_a_product_if_its_weight_lies_on_a_grid():
    mark = helper.make_node(WEIGHT, ['c'], ['q'], domain=DOMAIN, grid='w')
    moved = helper.make_node('Transpose', ['q'], ['t'])
    product = helper.make_node('Conv', ['x', 't'], ['y'])
    constants = [('c', np.ones(4, np.float32))]
    graph = graph_of(mark, moved, product, constants=constants)
    assert kind_of(graph.nodes[-1], graph) == PRODUCT


def test_the_size_of_a_quantized_map_makes_no_quantized_weight():
    mark = helper.make_node(WEIGHT, ['c'], ['q'], domain=DOMAIN, grid='w')
    size = helper.make_node('Shape', ['q'], ['s'])
    ones = helper.make_node('ConstantOfShape', ['s'], ['t'])
    product = helper.make_node('Conv', ['x', 't'], ['y'])
    constants = [('c', np.ones(4, np.float32))]
    graph = graph_of(mark, size, ones, product, constants=constants)
    assert kind_of(graph.nodes[-1], graph) == OTHER
