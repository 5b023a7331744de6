"""Keep layers with float weights as they are.

ONNX Runtime gives float weights a grid of its own, 8 bits and one scale for
the whole tensor, where a Conv, ConvTranspose or Gemm reads a tensor that lies
on a grid with one scale and a grid reads what it computes: the pass
``WeightBiasQuantization`` of its releases from 1.21 on. Such weights are
float because they do not bear fewer bits. The pass leaves alone what reads a
tensor with a scale for each channel, so that the layer gets such scales, all
of them equal.
"""

from __future__ import annotations

import numpy as np
import onnx

from taskptq.export.onnx.graph import Array, Graph, attribute

LAYERS = ('Conv', 'ConvTranspose', 'Gemm')
CHANNEL_AXIS = 1


def guard_float_weights(graph: Graph) -> list[str]:
    """Dequantize the input of layers with float weights for each channel.

    The values stay the same, bit by bit. An input of one channel stays as it
    is: its one scale is that of the tensor.

    Args:
        graph: Graph of standard operators; edited in place.

    Returns:
        Names of the layers.
    """
    made: dict[str, list[onnx.NodeProto]] = {}
    done = []
    for node in graph.nodes:
        source = _guarded_source(graph, node)
        if source is None:
            continue
        copy = _per_channel(graph, source, node, count=_channels(graph, node))
        made.setdefault(source.name, []).append(copy)
        node.input[0] = copy.output[0]
        done.append(node.name)
    nodes: list[onnx.NodeProto] = []
    for node in graph.nodes:
        nodes += [node, *made.get(node.name, [])]
    graph.replace_nodes(nodes)
    return done


def _guarded_source(
    graph: Graph, node: onnx.NodeProto
) -> onnx.NodeProto | None:
    """Return what dequantizes the input of a layer with float weights."""
    if node.op_type not in LAYERS or node.input[1] not in graph.constants:
        return None
    source = graph.producer.get(node.input[0])
    if source is None or source.op_type != 'DequantizeLinear':
        return None
    scale = graph.array(source.input[1])
    one_scale = scale is not None and scale.ndim == 0
    return source if one_scale and _channels(graph, node) > 1 else None


def _channels(graph: Graph, node: onnx.NodeProto) -> int:
    """Return the number of input channels of a layer."""
    weight = graph.array(node.input[1])
    assert weight is not None
    if node.op_type == 'Conv':
        return int(weight.shape[1] * attribute(node, 'group', 1))
    transposed = node.op_type == 'Gemm' and attribute(node, 'transB', 0)
    return int(weight.shape[1 if transposed else 0])


def _per_channel(
    graph: Graph, source: onnx.NodeProto, node: onnx.NodeProto, *, count: int
) -> onnx.NodeProto:
    """Return DequantizeLinear with its scale once for each channel."""
    names = [source.input[0]]
    for name in source.input[1:]:
        value = graph.array(name)
        assert value is not None
        repeated: Array = np.full(count, value)
        names.append(graph.add_constant(repeated, f'{name}.each'))
    return graph.node(
        'DequantizeLinear',
        names,
        [f'{node.name}/input'],
        name=f'{node.name}/input/DequantizeLinear',
        axis=CHANNEL_AXIS,
    )
