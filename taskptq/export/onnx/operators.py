"""What the operators of an ONNX graph do to integer grids."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from taskptq.export.onnx.emission import ACTIVATION, DOMAIN, Grid
from taskptq.export.onnx.graph import Graph, attribute
from taskptq.prepare.grid_plan import (
    ABSORBED,
    GRID,
    MOVER,
    OTHER,
    PRODUCT,
    SMOOTH,
    SQUASH,
    SUM,
    Operator,
)

KINDS = {
    'Conv': PRODUCT,
    'Relu': ABSORBED,
    'MaxPool': MOVER,
    'Reshape': MOVER,
    'Transpose': MOVER,
    'Flatten': MOVER,
    'Squeeze': MOVER,
    'Unsqueeze': MOVER,
    'Slice': MOVER,
    'Split': MOVER,
    'DepthToSpace': MOVER,
    'SpaceToDepth': MOVER,
    'Add': SUM,
    'Concat': SUM,
    'AveragePool': SUM,
    'GlobalAveragePool': SUM,
    'LeakyRelu': SMOOTH,
    'Sigmoid': SQUASH,
    'HardSigmoid': SQUASH,
    'Mul': SMOOTH,
}


def operators_of(graph: Graph, grids: Mapping[str, Grid]) -> list[Operator]:
    """Return the operators of a graph with placeholders.

    Args:
        graph: The graph.
        grids: Grid of each placeholder, by its name.
    """
    return [
        Operator(
            name=node.name,
            kind=kind_of(node, graph),
            inputs=tuple(data_inputs(node, graph)),
            outputs=tuple(name for name in node.output if name),
            per_channel=node.domain == DOMAIN
            and grids[attribute(node, 'grid').decode()].ch_axis is not None,
        )
        for node in graph.nodes
    ]


def kind_of(node: onnx.NodeProto, graph: Graph) -> str:
    """Return what an operator does to a grid."""
    if node.domain == DOMAIN:
        return GRID if node.op_type == ACTIVATION else OTHER
    if node.domain:
        return OTHER
    if node.op_type == 'Resize':
        # ONNX Runtime interpolates floats faster than codes, and without
        # rounding down.
        mode = attribute(node, 'mode', b'nearest')
        return MOVER if mode == b'nearest' else OTHER
    kind = KINDS.get(node.op_type, OTHER)
    if kind == PRODUCT and not has_grid(node.input[1], graph):
        # It runs in floats: a grid on its output would cost precision only.
        return OTHER
    reads_constant = len(data_inputs(node, graph)) < 2
    if node.op_type in ('Add', 'Mul') and reads_constant:
        return OTHER
    return kind


def has_grid(weight: str, graph: Graph) -> bool:
    """Whether a weight is computed from a placeholder, as integers are."""
    names, seen = [weight], {weight}
    while names:
        producer = graph.producer.get(names.pop())
        if producer is None or producer.op_type == 'Shape':
            continue
        if producer.domain == DOMAIN:
            return True
        names += [name for name in producer.input if name not in seen]
        seen.update(producer.input)
    return False


def data_inputs(node: onnx.NodeProto, graph: Graph) -> list[str]:
    """Return the tensors whose values an operator passes on.

    Shapes, sizes and constants are none; of a convolution, the input.
    """
    names = list(node.input)
    if node.op_type not in ('Add', 'Mul', 'Concat', 'Sum'):
        names = names[:1]
    return [name for name in names if name and name not in graph.constants]
