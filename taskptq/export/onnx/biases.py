"""Biases in the form in which runtimes add them to integer products."""

from __future__ import annotations

import numpy as np
import onnx

from taskptq.export.onnx.graph import Array, Graph
from taskptq.export.onnx.operators import KINDS
from taskptq.export.onnx.passes import is_weight
from taskptq.prepare.grid_plan import MOVER

INT32_MAX = np.iinfo(np.int32).max


def integer_biases(graph: Graph) -> list[str]:
    """Store the biases of quantized convolutions and Gemm as int32.

    The scale is that of the products: input's times weight's. Where an input
    is moved in between, as by MaxPool, ONNX Runtime still sums in integers,
    and would round a float bias on its own.

    Returns:
        Layers whose bias does not fit, and which stay float.
    """
    nodes: list[onnx.NodeProto] = []
    refused: list[str] = []
    for node in graph.nodes:
        bias = node.input[2] if len(node.input) > 2 else ''
        if node.op_type in ('Conv', 'Gemm') and bias in graph.constants:
            scale = product_scale(graph, node)
            made = None
            if scale is not None:
                made = _integer_bias(graph, node, bias, scale)
            if made is not None:
                nodes.append(made)
                node.input[2] = made.output[0]
            elif scale is not None:
                refused.append(node.name)
        nodes.append(node)
    graph.replace_nodes(nodes)
    return refused


def product_scale(graph: Graph, node: onnx.NodeProto) -> Array | None:
    """Return the scale of a layer's sums, (C,); None if it is float."""
    data = producer_of_values(graph, node.input[0])
    weight = graph.producer.get(node.input[1])
    for found in (data, weight):
        if found is None or found.op_type != 'DequantizeLinear':
            return None
    assert data is not None
    assert weight is not None
    if not is_weight(weight, graph):
        return None
    scale, step = graph.array(data.input[1]), graph.array(weight.input[1])
    point = graph.array(data.input[2])
    if scale is None or step is None or point is None or scale.size > 1:
        return None
    return None if point.dtype.itemsize > 1 else scale.reshape(()) * step


def producer_of_values(graph: Graph, name: str) -> onnx.NodeProto | None:
    """Return what computes the values of a tensor, not what moves them."""
    node = graph.producer.get(name)
    while node is not None and KINDS.get(node.op_type) == MOVER:
        node = graph.producer.get(node.input[0])
    return node


def _integer_bias(
    graph: Graph, node: onnx.NodeProto, bias: str, scale: Array
) -> onnx.NodeProto | None:
    """Return DequantizeLinear of an int32 bias; None if it overflows."""
    values = graph.array(bias)
    assert values is not None
    if values.ndim != 1:
        return None
    steps = np.broadcast_to(scale, values.shape).astype(np.float32)
    codes = np.rint(values.astype(np.float64) / steps)
    if np.abs(codes).max(initial=0) > INT32_MAX:
        return None
    stored = graph.add_constant(codes.astype(np.int32), f'{bias}.codes')
    return graph.node(
        'DequantizeLinear',
        [
            stored,
            graph.add_constant(steps, f'{bias}.scale'),
            graph.add_constant(
                np.zeros(len(values), np.int32), f'{bias}.zero_point'
            ),
        ],
        [f'{node.name}_bias_on_grid'],
        name=f'{node.name}/bias/DequantizeLinear',
        axis=0,
    )


def spread_biases(graph: Graph) -> int:
    """Give the biases behind matrix products two leading axes.

    ONNX Runtime turns MatMul and a bias of one axis into a Gemm, which then
    stays float for want of an output grid.

    Returns:
        How many.
    """
    done = 0
    for node in graph.nodes:
        if node.op_type != 'Add':
            continue
        for i in (0, 1):
            values = graph.array(node.input[i])
            product = graph.producer.get(node.input[1 - i])
            if (
                values is None
                or values.ndim != 1
                or product is None
                or product.op_type != 'MatMul'
                or product_inputs(graph, product) is None
            ):
                continue
            node.input[i] = graph.add_constant(
                values.reshape(1, 1, -1), f'{node.input[i]}.spread'
            )
            done += 1
    graph.refresh()
    return done


def product_inputs(
    graph: Graph, node: onnx.NodeProto
) -> tuple[onnx.NodeProto, onnx.NodeProto] | None:
    """Return what dequantizes the two operands of a product, if both are."""
    first, second = (graph.producer.get(name) for name in node.input[:2])
    for found in (first, second):
        if found is None or found.op_type != 'DequantizeLinear':
            return None
    assert first is not None
    assert second is not None
    return first, second
