import numpy as np
import onnx
import torch
from onnx import TensorProto, helper

from taskptq.export.onnx.channel_scales import multiply_scales
from taskptq.export.onnx.graph import Graph
from taskptq.export.onnx.runtime import session

PER_CHANNEL = {'activation': {'per_channel': True}}


def test_scales_of_channels_cost_no_integer_layer(exported, depthwise):
    model, batches = depthwise
    found = exported(model, batches=batches, qconfig=PER_CHANNEL)
    assert found.report.checks['float_layers'] == []
    assert found.report.shifted
    graph = onnx.load(str(found.path)).graph
    scales = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    for node in graph.node:
        if node.op_type == 'QuantizeLinear':
            assert scales[node.input[1]].size == 1


def test_channels_of_different_range_keep_their_precision(exported, depthwise):
    model, batches = depthwise
    with torch.no_grad():
        floats = model(batches[0]).numpy()
    found = exported(model, batches=batches, qconfig=PER_CHANNEL)
    (got,) = session(str(found.path)).run(None, {'x': found.x.numpy()})
    with torch.no_grad():
        simulated = found.model(found.x).numpy()
    error = np.square(got - floats).mean()
    assert error < 2 * np.square(simulated - floats).mean()


def test_scales_of_flattened_maps_become_products():
    made = helper.make_graph(
        [
            helper.make_node('Reshape', ['x', 'flat'], ['f']),
            helper.make_node('QuantizeLinear', ['f', 's', 'z'], ['q'], axis=1),
            helper.make_node(
                'DequantizeLinear', ['q', 's', 'z'], ['y'], axis=1
            ),
        ],
        'graph',
        [helper.make_tensor_value_info('x', TensorProto.FLOAT, (2, 3, 4, 5))],
        [helper.make_empty_tensor_value_info('y')],
        [
            onnx.numpy_helper.from_array(array, name)
            for name, array in {
                'flat': np.array([2, 3, -1]),
                's': np.array([0.1, 0.2, 0.5], np.float32),
                'z': np.zeros(3, np.uint8),
            }.items()
        ],
    )
    model = helper.make_model(
        made, opset_imports=[helper.make_opsetid('', 20)], ir_version=8
    )
    x = {'x': torch.rand(2, 3, 4, 5).numpy()}
    (expected,) = session(model.SerializeToString()).run(None, x)
    graph = Graph(model)
    assert multiply_scales(graph) == 2
    graph.finish()
    (found,) = session(model.SerializeToString()).run(None, x)
    np.testing.assert_allclose(found, expected, atol=1e-6)
