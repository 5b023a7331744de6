"""Append one graph to another."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import compose

from taskptq.export.onnx.graph import Graph, constants_to_initializers

__all__ = ['append_graph']

PREFIX = 'decoding/'


def append_graph(
    first: onnx.ModelProto,
    second: onnx.ModelProto,
    *,
    outputs: Sequence[str],
) -> onnx.ModelProto:
    """Return one model whose outputs are those of ``second``.

    Args:
        first: A model; its metadata and versions are kept.
        second: A model whose inputs are named as the outputs of ``first``.
        outputs: Names of the outputs of ``second``.
    """
    second = compose.add_prefix(second, prefix=PREFIX)
    second.ir_version = first.ir_version
    del second.opset_import[:]
    second.opset_import.extend(first.opset_import)
    names = [value.name for value in first.graph.output]
    joined = compose.merge_models(
        first,
        second,
        io_map=[(name, f'{PREFIX}{name}') for name in names],
    )
    graph = Graph(joined)
    constants_to_initializers(graph)
    new = dict(zip(graph.outputs, outputs, strict=True))
    for node in graph.nodes:
        for names in (node.input, node.output):
            names[:] = [new.get(name, name) for name in names]
    for value in joined.graph.output:
        value.name = new[value.name]
    graph.outputs = list(outputs)
    graph.refresh()
    graph.finish()
    joined.producer_name = first.producer_name
    joined.producer_version = first.producer_version
    onnx.checker.check_model(joined)
    return joined
