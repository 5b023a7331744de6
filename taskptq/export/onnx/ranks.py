"""How many axes the tensors of a graph have."""

from __future__ import annotations

import onnx
from onnx import helper

from taskptq.export.onnx.graph import Graph

__all__ = ['ranks_of']


def ranks_of(graph: Graph) -> dict[str, int]:
    """Return the number of axes of each tensor, as far as ONNX infers it.

    Args:
        graph: Graph of standard operators; left as it is.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    copy = Graph(model)
    copy.constants = dict(graph.constants)
    copy.finish()
    known = {entry.domain for entry in model.opset_import}
    for domain in {node.domain for node in copy.nodes} - known:
        model.opset_import.append(helper.make_opsetid(domain, 1))
    found = onnx.shape_inference.infer_shapes(model).graph
    return {
        value.name: len(value.type.tensor_type.shape.dim)
        for value in (*found.input, *found.value_info, *found.output)
        if value.type.tensor_type.HasField('shape')
    }
