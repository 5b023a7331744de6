"""Write strided slices that are stacked as channels in one operator.

Some stems, such as YOLOX's Focus, take every other row and column and
concatenate the four images. Runtimes copy them value by value: SpaceToDepth
takes a third of the time in ONNX Runtime, and still less in OpenVINO. The
order of the channels differs, and is made good in the weights of the
convolution behind.
"""

from __future__ import annotations

import numpy as np
import onnx

from taskptq.export.onnx.graph import Graph, attribute
from taskptq.export.onnx.passes import is_weight

# An image, by its first row and column.
Place = tuple[int, int]
SPATIAL = (2, 3)


def merge_patches(graph: Graph) -> list[str]:
    """Replace stacked slices of an image by SpaceToDepth.

    Returns:
        Names of the convolutions whose weights were reordered.
    """
    nodes: list[onnx.NodeProto] = []
    made: dict[str, onnx.NodeProto] = {}
    done: list[str] = []
    for node in graph.nodes:
        if node.name in made:
            nodes.append(made[node.name])
        found = _patches(graph, node)
        conv = None if found is None else _sole_reader(graph, node.output[0])
        if found is None or conv is None:
            nodes.append(node)
            continue
        source, places, block = found
        nodes.append(
            graph.node(
                'SpaceToDepth',
                [source],
                [node.output[0]],
                name=f'{node.name}/SpaceToDepth',
                blocksize=block,
            )
        )
        made[conv.name] = _reordered(graph, conv, places, block)
        done.append(conv.name)
    graph.replace_nodes(nodes)
    return done


def is_merged(graph: Graph, node: onnx.NodeProto) -> bool:
    """Whether a node reads channels in the order of SpaceToDepth."""
    source = graph.producer.get(node.input[0])
    return source is not None and source.op_type == 'SpaceToDepth'


def _patches(
    graph: Graph, node: onnx.NodeProto
) -> tuple[str, list[Place], int] | None:
    """Return the image, first pixel of each patch, and the stride."""
    if node.op_type != 'Concat' or attribute(node, 'axis') != 1:
        return None
    block = round(len(node.input) ** 0.5)
    if block < 2 or block**2 != len(node.input):
        return None
    sources, places = set(), []
    for name in node.input:
        source, starts = _walk(graph, name, block)
        if set(starts) != set(SPATIAL):
            return None
        sources.add(source)
        places.append((starts[SPATIAL[0]], starts[SPATIAL[1]]))
    wanted = {(i, j) for i in range(block) for j in range(block)}
    if len(sources) != 1 or set(places) != wanted:
        return None
    return sources.pop(), places, block


def _walk(graph: Graph, name: str, block: int) -> tuple[str, dict[int, int]]:
    """Follow whole slices of this stride back; return start by axis."""
    starts: dict[int, int] = {}
    while True:
        node = graph.producer.get(name)
        if node is None or node.op_type != 'Slice' or len(node.input) < 5:
            return name, starts
        values = [graph.array(x) for x in node.input[1:]]
        if any(x is None for x in values):
            return name, starts
        begins, ends, axes, steps = (
            np.asarray(x).reshape(-1).tolist() for x in values
        )
        for begin, end, axis, step in zip(
            begins, ends, axes, steps, strict=True
        ):
            whole = end >= np.iinfo(np.int32).max and 0 <= begin < block
            if step != block or axis in starts or not whole:
                return name, {}
            starts[axis] = begin
        name = node.input[0]


def _sole_reader(graph: Graph, name: str) -> onnx.NodeProto | None:
    """Return the convolution that alone reads a tensor, through a grid."""
    if name in graph.outputs:
        return None
    for kind in ('QuantizeLinear', 'DequantizeLinear', 'Conv'):
        readers = graph.readers[name]
        if len(readers) != 1 or readers[0].op_type != kind:
            return None
        node = readers[0]
        if kind != 'Conv':
            scale = graph.array(node.input[1])
            if scale is None or scale.size > 1:
                return None
            name = node.output[0]
    weight = graph.producer.get(node.input[1])
    if weight is None or not is_weight(weight, graph):
        return None
    grouped = attribute(node, 'group', 1) > 1
    along = attribute(weight, 'axis', 1) == 1
    scale = graph.array(weight.input[1])
    assert scale is not None
    return None if grouped or (along and scale.size > 1) else node


def _reordered(
    graph: Graph, conv: onnx.NodeProto, places: list[Place], block: int
) -> onnx.NodeProto:
    """Let a convolution read a weight with channels in the new order."""
    weight = graph.producer[conv.input[1]]
    codes = graph.array(weight.input[0])
    assert codes is not None
    patches = np.split(codes, len(places), axis=1)
    # SpaceToDepth goes along rows first.
    order = [places.index((i, j)) for i in range(block) for j in range(block)]
    stem = f'{weight.input[0]}.{conv.name.strip("/").replace("/", ".")}'
    made = graph.node(
        'DequantizeLinear',
        [
            graph.add_constant(
                np.concatenate([patches[i] for i in order], axis=1),
                f'{stem}.patches.codes',
            ),
            *weight.input[1:],
        ],
        [f'{conv.name}_patch_weight'],
        name=f'{conv.name}/patches/DequantizeLinear',
    )
    made.attribute.extend(weight.attribute)
    conv.input[1] = made.output[0]
    return made
