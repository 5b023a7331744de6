"""Keep integer products off a fault of ONNX Runtime.

On CPUs with AMX, the 8-bit matrix products of ONNX Runtime 1.23 are wrong in
the columns beyond a multiple of 32 if there are 17 to 31 of these. Columns
are the output channels of a layer: such layers get channels of zeros, and
their output is cut back.
"""

from __future__ import annotations

import numpy as np
import onnx

from taskptq.export.onnx.graph import Array, Graph, attribute

BLOCK = 32
HALF_BLOCK = 16


def pad_columns(graph: Graph) -> list[str]:
    """Pad the output channels of integer layers that would be wrong.

    Returns:
        Names of the layers.
    """
    made: dict[str, list[onnx.NodeProto]] = {}
    cuts: dict[str, list[onnx.NodeProto]] = {}
    done: list[str] = []
    for node in graph.nodes:
        axis = _column_axis(graph, node)
        if axis is None:
            continue
        end = _end_of_layer(graph, node)
        if end is None:
            continue
        count = _pad(graph, node, axis, made.setdefault(node.name, []))
        cuts.setdefault(end.name, []).append(
            _cut(graph, end, count, axis=1 if node.op_type == 'Conv' else -1)
        )
        done.append(node.name)
    nodes: list[onnx.NodeProto] = []
    for node in graph.nodes:
        nodes += [*made.get(node.name, []), node, *cuts.get(node.name, [])]
    graph.replace_nodes(nodes)
    return done


def _column_axis(graph: Graph, node: onnx.NodeProto) -> int | None:
    """Return the weight's axis of columns if their number is a bad one."""
    if node.op_type == 'Conv':
        axis = 0
    elif node.op_type == 'MatMul':
        axis = 1
    elif node.op_type == 'Gemm':
        axis = 0 if attribute(node, 'transB', 0) else 1
    else:
        return None
    operands = [graph.producer.get(name) for name in node.input[:2]]
    if any(x is None or x.op_type != 'DequantizeLinear' for x in operands):
        return None
    weight = operands[1]
    assert weight is not None
    codes = graph.array(weight.input[0])
    if codes is None or codes.dtype != np.int8:
        return None
    # Grouped convolutions multiply group by group.
    if attribute(node, 'group', 1) > 1 or codes.ndim < 2:
        return None
    return axis if codes.shape[axis] % BLOCK > HALF_BLOCK else None


def _end_of_layer(graph: Graph, node: onnx.NodeProto) -> onnx.NodeProto | None:
    """Return the last node that the runtime makes one with a layer.

    None for a layer that stays float.
    """
    end = node
    for kinds in (('Add', 'Relu'), ('QuantizeLinear',), ('DequantizeLinear',)):
        readers = graph.readers.get(end.output[0], [])
        if len(readers) != 1 or readers[0].op_type not in kinds:
            if kinds[0] == 'Add':
                continue
            break
        if readers[0].op_type == 'Add' and not _adds_bias(graph, readers[0]):
            continue
        end = readers[0]
    if node.op_type == 'Conv':
        return end if end.op_type == 'DequantizeLinear' else None
    return end if end.op_type != 'QuantizeLinear' else None


def _adds_bias(graph: Graph, node: onnx.NodeProto) -> bool:
    return any(name in graph.constants for name in node.input)


def _pad(
    graph: Graph, node: onnx.NodeProto, axis: int, made: list[onnx.NodeProto]
) -> int:
    """Add columns of zeros to weight and bias; return how many there were."""
    weight = graph.producer[node.input[1]]
    count = 0
    names = []
    # That of a weight without a negative value is no 0 in signed integers.
    points = graph.array(weight.input[2]) if len(weight.input) > 2 else None
    zero = 0 if points is None else int(points.flat[0])
    fills = (zero, 1, zero)
    for i, name in enumerate(weight.input):
        array = graph.array(name)
        assert array is not None
        if i == 0:
            count = array.shape[axis]
        if i == 0 or array.ndim:
            where = axis if i == 0 else 0
            array = _with_columns(array, where, -count % BLOCK, fill=fills[i])
            name = graph.add_constant(array, f'{name}.padded')
        names.append(name)
    padded = graph.node(
        'DequantizeLinear',
        names,
        [f'{node.name}/padded_weight'],
        name=f'{node.name}/padded/DequantizeLinear',
    )
    padded.attribute.extend(weight.attribute)
    made.append(padded)
    node.input[1] = padded.output[0]
    if len(node.input) > 2 and node.input[2]:
        _pad_bias(graph, node, -count % BLOCK, made)
    for reader in graph.readers[node.output[0]]:
        if reader.op_type == 'Add' and node.op_type == 'MatMul':
            _pad_added(graph, reader, -count % BLOCK)
    return count


def _with_columns(
    array: Array, axis: int, count: int, *, fill: float = 0
) -> Array:
    width = [(0, 0)] * array.ndim
    width[axis] = (0, count)
    return np.pad(array, width, constant_values=fill)


def _pad_bias(
    graph: Graph, node: onnx.NodeProto, count: int, made: list[onnx.NodeProto]
) -> None:
    """Pad the bias of a layer, integer or not."""
    source = graph.producer.get(node.input[2])
    if source is None:
        bias = graph.array(node.input[2])
        assert bias is not None
        node.input[2] = graph.add_constant(
            _with_columns(bias, 0, count),
            f'{node.input[2]}.padded',
        )
        return
    names = []
    data = graph.array(graph.producer[node.input[0]].input[1])
    assert data is not None
    for i, name in enumerate(source.input):
        array = graph.array(name)
        assert array is not None
        # ONNX Runtime 1.32 compares the scale with input's times weight's,
        # which is 1 in these channels.
        fill = float(data.flat[0]) if i == 1 else 0
        array = _with_columns(array, 0, count, fill=fill)
        names.append(graph.add_constant(array, f'{name}.padded'))
    padded = graph.node(
        'DequantizeLinear',
        names,
        [f'{node.name}/padded_bias'],
        name=f'{node.name}/padded_bias/DequantizeLinear',
    )
    padded.attribute.extend(source.attribute)
    made.append(padded)
    node.input[2] = padded.output[0]


def _pad_added(graph: Graph, node: onnx.NodeProto, count: int) -> None:
    """Pad the bias that is added to a product."""
    for i, name in enumerate(node.input):
        array = graph.array(name)
        if array is not None and array.ndim and array.shape[-1] > 1:
            padded = _with_columns(array, array.ndim - 1, count)
            node.input[i] = graph.add_constant(padded, f'{name}.padded')


def _cut(
    graph: Graph, end: onnx.NodeProto, count: int, *, axis: int
) -> onnx.NodeProto:
    """Return Slice to the first columns, under the name of the output."""
    name = end.output[0]
    end.output[0] = f'{end.name}/padded'
    return graph.node(
        'Slice',
        [
            end.output[0],
            *(
                graph.add_constant(np.array([value], np.int64), f'cut_{value}')
                for value in (0, count, axis)
            ),
        ],
        [name],
        name=f'{end.name}/cut',
    )
