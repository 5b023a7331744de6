import numpy as np
from onnx import TensorProto, helper

from taskptq.export.onnx.graph import Graph
from taskptq.export.onnx.ranks import ranks_of


def test_axes_are_counted_through_operators_and_constants():
    nodes = [
        helper.make_node('Reshape', ['x', 'shape'], ['flat']),
        helper.make_node('Relu', ['flat'], ['relu']),
        helper.make_node('Unknown', ['relu'], ['y'], domain='other'),
    ]
    given = helper.make_tensor_value_info('x', TensorProto.FLOAT, (2, 3, 4, 5))
    graph = Graph(
        helper.make_model(
            helper.make_graph(
                nodes,
                'graph',
                [given],
                [helper.make_empty_tensor_value_info('y')],
            )
        )
    )
    shape = graph.add_constant(np.array([2, 3, -1]), 'shape')
    assert shape == 'shape'
    found = ranks_of(graph)
    assert found['x'] == 4
    assert found['flat'] == found['relu'] == 3
    assert 'y' not in found
    assert len(graph.proto.initializer) == 0
