"""Quantize values once where their grids are equal."""

from __future__ import annotations

from typing import Any

import onnx

from taskptq.export.onnx.graph import Graph, attribute

__all__ = ['merge_equal_grids']


def merge_equal_grids(graph: Graph) -> int:
    """Quantize a tensor once for all readers whose grids are equal.

    Layers that read one tensor have observed the same range. A runtime makes
    a grid part of the layer in front of it if nothing else reads that.
    Dequantized values that are quantized again on their own grid keep their
    codes, which ONNX Runtime would take for nothing, even where the values
    are an output.

    Returns:
        How many operators went away.
    """
    known: dict[tuple[Any, ...], str] = {}
    renamed: dict[str, str] = {}
    kept: list[onnx.NodeProto] = []
    for node in graph.nodes:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
        key = _grid_key(graph, node)
        if key is None or node.output[0] in graph.outputs:
            kept.append(node)
        elif (codes := _own_codes(graph, node, key)) is not None:
            renamed[node.output[0]] = renamed.get(codes, codes)
        elif key in known:
            renamed[node.output[0]] = known[key]
        else:
            known[key] = node.output[0]
            kept.append(node)
    count = len(graph.nodes) - len(kept)
    graph.replace_nodes(kept)
    return count


def _own_codes(
    graph: Graph, node: onnx.NodeProto, key: tuple[Any, ...]
) -> str | None:
    """Return the codes of values that are quantized on their own grid."""
    source = graph.producer.get(node.input[0])
    if node.op_type != 'QuantizeLinear' or source is None:
        return None
    if source.op_type != 'DequantizeLinear':
        return None
    before = _grid_key(graph, source)
    same = before is not None and before[2:] == key[2:]
    return source.input[0] if same else None


def _grid_key(graph: Graph, node: onnx.NodeProto) -> tuple[Any, ...] | None:
    """Return what makes two operators on a grid the same."""
    if node.op_type not in ('QuantizeLinear', 'DequantizeLinear', 'Clip'):
        return None
    if node.input[0] in graph.constants:
        return None
    arrays = [graph.array(name) for name in node.input[1:]]
    if any(x is None for x in arrays):
        return None
    values = tuple(
        (x.dtype.str, x.shape, x.tobytes()) for x in arrays if x is not None
    )
    axis = attribute(node, 'axis', 1)
    return node.op_type, node.input[0], axis, values
