"""Move scales of channels from activations into the weights beside them.

Integer convolutions read and write one scale for all channels. A scale per
channel is a factor of the weights: of those that read it, in a depthwise
convolution, or of those that compute it.
"""

from __future__ import annotations

import numpy as np
import onnx

from taskptq.export.onnx.graph import Array, Graph, attribute
from taskptq.export.onnx.passes import is_weight
from taskptq.export.onnx.ranks import ranks_of

ONE = 'one_scale'
# Operators whose output has as many axes as their input.
KEEPS_AXES = (
    'Add',
    'Clip',
    'DequantizeLinear',
    'HardSigmoid',
    'LeakyRelu',
    'MaxPool',
    'Mul',
    'QuantizeLinear',
    'Relu',
    'Resize',
    'Sigmoid',
    'Tanh',
)


def fold_read_scales(graph: Graph) -> list[str]:
    """Let depthwise convolutions read codes of one scale.

    ``sum_k w_k (s_c (q_k - z)) = sum_k (w_k s_c) (q_k - z)``: each output
    channel reads one input channel.

    Returns:
        Names of the convolutions.
    """
    nodes: list[onnx.NodeProto] = []
    done: list[str] = []
    for node in graph.nodes:
        if node.op_type == 'Conv' and _reads_channel_scales(graph, node):
            data = graph.producer[node.input[0]]
            scale = graph.array(data.input[1])
            assert scale is not None
            channels = scale.repeat(_per_input(graph, node, scale))
            nodes += [
                _on_one_scale(graph, node, data),
                _scaled_weight(graph, node, channels),
            ]
            done.append(node.name)
        nodes.append(node)
    graph.replace_nodes(nodes)
    return done


def fold_written_scales(graph: Graph) -> list[str]:
    """Let convolutions write codes of one scale.

    ``round(y_c / s_c)`` is what weights divided by s_c give on a grid of
    scale 1. A ReLU between the two keeps its place: scales are positive.

    Returns:
        Names of the convolutions.
    """
    made: dict[str, onnx.NodeProto] = {}
    for quantize in graph.nodes:
        if quantize.op_type != 'QuantizeLinear':
            continue
        scale, point = (graph.array(name) for name in quantize.input[1:3])
        if scale is None or point is None or scale.size < 2:
            continue
        conv = _sole_conv(graph, quantize.input[0])
        if conv is None or (point != point.flat[0]).any():
            continue
        made[conv.name] = _scaled_weight(graph, conv, 1 / scale)
        bias = graph.array(conv.input[2]) if len(conv.input) > 2 else None
        if bias is not None:
            conv.input[2] = graph.add_constant(
                (bias / scale).astype(np.float32),
                f'{conv.input[2]}.{conv.name.strip("/").replace("/", ".")}',
            )
        _set_one_scale(graph, quantize, point)
    nodes: list[onnx.NodeProto] = []
    for node in graph.nodes:
        if node.name in made:
            nodes.append(made[node.name])
        nodes.append(node)
    graph.replace_nodes(nodes)
    return list(made)


def multiply_scales(graph: Graph) -> int:
    """Write scales per channel as products beside a grid of scale 1.

    ONNX Runtime's own operators for such grids are ten times as slow.

    Returns:
        How many operators.
    """
    nodes: list[onnx.NodeProto] = []
    done = 0
    scaled = any(_has_channel_scales(graph, node) for node in graph.nodes)
    ranks = ranks_of(graph) if scaled else {}
    for node in graph.nodes:
        if not _has_channel_scales(graph, node):
            nodes.append(node)
            continue
        done += 1
        scale, point = (graph.array(name) for name in node.input[1:3])
        assert scale is not None
        assert point is not None
        is_read = node.op_type == 'QuantizeLinear'
        rank = ranks.get(node.input[0]) or _rank(graph, node.input[0])
        trailing = (1,) * (rank - 2)
        factors = (1 / scale if is_read else scale).reshape(-1, *trailing)
        name = graph.add_constant(
            factors.astype(np.float32),
            f'{node.input[1]}.{"reciprocal" if is_read else "factor"}',
        )
        inner = f'{node.name}_on_one_scale'
        _set_one_scale(graph, node, point)
        if is_read:
            ends = [node.input[0], name], [inner]
            node.input[0] = inner
        else:
            ends = [inner, name], [node.output[0]]
            node.output[0] = inner
        product = graph.node('Mul', *ends, name=f'{node.name}/scale')
        nodes += [product, node] if is_read else [node, product]
    graph.replace_nodes(nodes)
    return done


def _rank(graph: Graph, name: str) -> int:
    """Guess how many axes a tensor has whose axis 1 are channels.

    That of the convolution that it comes from, else 4: axis 1 has the
    channels of an image then, or the heads of an attention.
    """
    node = graph.producer.get(name)
    while node is not None and node.op_type in KEEPS_AXES:
        name = node.input[0]
        node = graph.producer.get(name)
    if node is None or node.op_type not in ('Conv', 'ConvTranspose'):
        return 4
    source = graph.producer.get(node.input[1])
    weight = graph.array(source.input[0] if source else node.input[1])
    return 4 if weight is None else weight.ndim


def _has_channel_scales(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether a node is on channels' scales with one zero point."""
    if node.op_type not in ('QuantizeLinear', 'DequantizeLinear'):
        return False
    if node.input[0] in graph.constants or attribute(node, 'axis', 1) != 1:
        return False
    scale, point = (graph.array(name) for name in node.input[1:3])
    if scale is None or point is None or scale.size < 2:
        return False
    return bool((point == point.flat[0]).all())


def _reads_channel_scales(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether a depthwise convolution reads one scale per channel."""
    data = graph.producer.get(node.input[0])
    weight = graph.producer.get(node.input[1])
    if data is None or data.op_type != 'DequantizeLinear':
        return False
    scale, point = (graph.array(name) for name in data.input[1:3])
    if scale is None or point is None or scale.size < 2:
        return False
    return bool(
        (point == point.flat[0]).all()
        and attribute(data, 'axis', 1) == 1
        and attribute(node, 'group', 1) == scale.size
        and weight is not None
        and is_weight(weight, graph)
    )


def _per_input(graph: Graph, node: onnx.NodeProto, scale: Array) -> int:
    """Return how many output channels read one input channel."""
    codes = graph.array(graph.producer[node.input[1]].input[0])
    assert codes is not None
    return int(codes.shape[0] // scale.size)


def _on_one_scale(
    graph: Graph, node: onnx.NodeProto, data: onnx.NodeProto
) -> onnx.NodeProto:
    """Let a convolution read codes as if their scale were 1."""
    point = graph.array(data.input[2])
    assert point is not None
    made = graph.node(
        'DequantizeLinear',
        [data.input[0], *_one_scale(graph, data.input[2], point)],
        [f'{node.name}_input_codes'],
        name=f'{node.name}/input/DequantizeLinear',
    )
    node.input[0] = made.output[0]
    return made


def _set_one_scale(
    graph: Graph, quantize: onnx.NodeProto, point: Array
) -> None:
    """Quantize with scale 1; what reads the codes keeps its scales."""
    quantize.input[1], quantize.input[2] = _one_scale(
        graph, quantize.input[2], point
    )
    _drop_axis(quantize)


def _one_scale(graph: Graph, name: str, point: Array) -> tuple[str, str]:
    return (
        graph.add_constant(np.array(1, np.float32), ONE),
        graph.add_constant(
            np.array(point.flat[0], point.dtype), f'{name}.common'
        ),
    )


def _drop_axis(node: onnx.NodeProto) -> None:
    kept = [a for a in node.attribute if a.name != 'axis']
    del node.attribute[:]
    node.attribute.extend(kept)


def _scaled_weight(
    graph: Graph, conv: onnx.NodeProto, factors: Array
) -> onnx.NodeProto:
    """Let a convolution read its weight with scales times factors, (C,)."""
    weight = graph.producer[conv.input[1]]
    step, point = (graph.array(name) for name in weight.input[1:3])
    assert step is not None
    assert point is not None
    scale = (step * factors).astype(np.float32)
    points = np.broadcast_to(point, scale.shape)
    stem = f'{weight.input[0]}.{conv.name.strip("/").replace("/", ".")}'
    made = graph.node(
        'DequantizeLinear',
        [
            weight.input[0],
            graph.add_constant(scale, f'{stem}.scale'),
            graph.add_constant(points, f'{stem}.zero_point'),
        ],
        [f'{conv.name}_scaled_weight'],
        name=f'{conv.name}/weight/DequantizeLinear',
        axis=0,
    )
    made.output[0] = f'{made.name}_output'
    conv.input[1] = made.output[0]
    return made


def _sole_conv(graph: Graph, name: str) -> onnx.NodeProto | None:
    """Return the convolution that computes a tensor, and nobody else's.

    Its weight is dequantized; a ReLU may follow it.
    """
    for _ in range(2):
        node = graph.producer.get(name)
        if node is None or len(graph.readers[name]) != 1:
            return None
        if node.op_type == 'Relu':
            name = node.input[0]
            continue
        weight = graph.producer.get(node.input[1]) if node.input[1:] else None
        if node.op_type != 'Conv' or weight is None:
            return None
        return node if is_weight(weight, graph) else None
    return None
