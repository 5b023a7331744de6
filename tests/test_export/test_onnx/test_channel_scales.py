import numpy as np
import onnx
import torch

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
