import builtins

import numpy as np
import pytest
from onnx import helper

from taskptq.export.onnx.errors import OnnxExportError
from taskptq.export.onnx.runtime import inner_session, session

from .test_graph import graph_of


def test_values_inside_a_graph_can_be_read():
    graph = graph_of(
        helper.make_node('Relu', ['x'], ['a']),
        helper.make_node('Neg', ['a'], ['y']),
    )
    graph.proto.input[0].type.tensor_type.elem_type = 1
    graph.model.ir_version = 9
    graph.model.opset_import[0].version = 20
    x = np.array([-1, 2], np.float32)
    (found,) = inner_session(graph, ['a']).run(None, {'x': x})
    np.testing.assert_array_equal(found, [0, 2])
    assert graph.outputs == ['y']


def test_codes_of_16_bits_can_be_read():
    graph = graph_of(
        helper.make_node('QuantizeLinear', ['x', 's', 'z'], ['a']),
        helper.make_node('DequantizeLinear', ['a', 's', 'z'], ['y']),
    )
    scale = graph.add_constant(np.array(0.5, np.float32), 's')
    zero = graph.add_constant(np.array(3, np.int16), 'z')
    for node in graph.proto.node:
        node.input[1:] = [scale, zero]
    graph.proto.input[0].type.tensor_type.elem_type = 1
    graph.model.ir_version = 9
    graph.model.opset_import[0].version = 20
    x = np.array([-1, 2], np.float32)
    (found,) = inner_session(graph, ['a']).run(None, {'x': x})
    np.testing.assert_array_equal(found, [1, 7])
    assert graph.model.opset_import[0].version == 20


def test_a_missing_runtime_is_said_in_one_sentence(monkeypatch):
    original = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == 'onnxruntime':
            raise ImportError(name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, '__import__', missing)
    with pytest.raises(OnnxExportError, match=r'taskptq\[onnx\]'):
        session(b'')
