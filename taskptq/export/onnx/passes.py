"""Passes over graphs of standard operators that runtimes profit from."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from taskptq.export.onnx.graph import Array, Graph, attribute

# Operators that only move the values of a weight.
WEIGHT_MOVES = (
    'Transpose',
    'Reshape',
    'Slice',
    'Split',
    'Squeeze',
    'Unsqueeze',
    'Flatten',
    'Gather',
    'Identity',
)
# Operators on shapes and places, and the size of such values.
FOLDED = (
    'Add',
    'Cast',
    'Concat',
    'Div',
    'Gather',
    'Mod',
    'Mul',
    'Slice',
    'Squeeze',
    'Sub',
    'Unsqueeze',
)
SMALL = 16


def fold_shapes(graph: Graph) -> int:
    """Compute what depends on the shapes of weights alone.

    Chunks of a weight are cut where its shape says.

    Returns:
        How many operators went away.
    """
    kept: list[onnx.NodeProto] = []
    for node in graph.nodes:
        arrays = [graph.array(name) for name in node.input if name]
        source = graph.producer.get(node.input[0]) if node.input else None
        if node.op_type == 'Shape' and source and is_weight(source, graph):
            codes = graph.array(source.input[0])
            assert codes is not None
            found = [np.array(codes.shape, np.int64)]
        elif (
            node.op_type in FOLDED
            and node.output[0] not in graph.outputs
            and all(x is not None and x.size <= SMALL for x in arrays)
        ):
            first = arrays[0]
            assert first is not None
            found = _evaluate(graph, node, first)
        else:
            kept.append(node)
            continue
        for name, array in zip(node.output, found, strict=True):
            graph.constants[name] = numpy_helper.from_array(
                np.array(array), name
            )
    count = len(graph.nodes) - len(kept)
    graph.replace_nodes(kept)
    return count


def drop_repeated_relus(graph: Graph) -> int:
    """Drop each ReLU that reads the output of another one.

    Some heads rectify what their layers have rectified. ONNX Runtime fuses
    the first ReLU into a convolution and then fails at the second.

    Returns:
        How many operators went away.
    """
    count = 0
    while (found := _repeated_relu(graph)) is not None:
        before, node = found
        given, made = before.output[0], node.output[0]
        if made in graph.outputs:
            # The name of an output stays: the first one takes it.
            graph.redirect(given, made, but=[node.name])
            before.output[0] = made
        else:
            graph.redirect(made, given)
        name = node.name
        graph.replace_nodes(n for n in graph.nodes if n.name != name)
        count += 1
    return count


def _repeated_relu(
    graph: Graph,
) -> tuple[onnx.NodeProto, onnx.NodeProto] | None:
    """Return two ReLUs in a row of which one can go, None if none are."""
    for node in graph.nodes:
        before = graph.producer.get(node.input[0]) if node.input else None
        if before is None or {node.op_type, before.op_type} != {'Relu'}:
            continue
        if not {node.output[0], before.output[0]} <= set(graph.outputs):
            return before, node
    return None


def move_weights(graph: Graph) -> int:
    """Apply what moves a dequantized weight to its integers instead.

    Runtimes read an integer weight only straight behind DequantizeLinear.

    Returns:
        How many operators went away.
    """
    done = 0
    again = True
    while again:
        again = False
        for node in list(graph.nodes):
            source = graph.producer.get(node.input[0]) if node.input else None
            if (
                node.op_type in WEIGHT_MOVES
                and source is not None
                and is_weight(source, graph)
                and all(n in graph.constants for n in node.input[1:] if n)
                and _move(graph, node, source)
            ):
                again = True
                done += 1
    return done


def is_weight(node: onnx.NodeProto, graph: Graph) -> bool:
    """Whether a node dequantizes a constant."""
    return bool(
        node.op_type == 'DequantizeLinear' and node.input[0] in graph.constants
    )


def _move(graph: Graph, node: onnx.NodeProto, source: onnx.NodeProto) -> bool:
    """Replace one mover of a weight; return False if it mixes its grids."""
    parts = _spread(graph, source)
    moved = [_evaluate(graph, node, part) for part in parts]
    made = []
    for i, output in enumerate(node.output):
        codes, scale, zero_point = (part[i] for part in moved)
        axis = _axis_of(scale, zero_point)
        if axis is None:
            return False
        made.append((output, codes, scale, zero_point, axis))
    nodes = []
    for other in graph.nodes:
        if other.name != node.name:
            nodes.append(other)
            continue
        for output, codes, scale, zero_point, axis in made:
            stem = source.input[0]
            suffix = f'.{node.name.strip("/").replace("/", ".")}'
            grid = [_along(part, axis) for part in (scale, zero_point)]
            names = [
                _add_once(graph, array, stem=stem, name=f'{suffix}.{what}')
                for array, what in zip(
                    (codes, *grid),
                    ('codes', 'scale', 'zero_point'),
                    strict=True,
                )
            ]
            extra: dict[str, Any] = {} if axis < 0 else {'axis': axis}
            nodes.append(
                graph.node(
                    'DequantizeLinear',
                    names,
                    [output],
                    name=f'{node.name}/DequantizeLinear',
                    **extra,
                )
            )
    graph.replace_nodes(nodes)
    return True


def _add_once(graph: Graph, array: Array, *, stem: str, name: str) -> str:
    """Add a constant, unless a layer that runs again has stored it."""
    what = name.rpartition('.')[2]
    for known in graph.constants:
        if known.startswith(f'{stem}.') and known.endswith(f'.{what}'):
            stored = graph.array(known)
            if (
                stored is not None
                and stored.dtype == array.dtype
                and np.array_equal(stored, array)
            ):
                return known
    return graph.add_constant(array, f'{stem}{name}')


def _spread(graph: Graph, source: onnx.NodeProto) -> list[Array]:
    """Return codes, scales and zero points of a weight, all of its shape."""
    codes, scale, zero_point = (graph.array(n) for n in source.input)
    assert codes is not None
    assert scale is not None
    assert zero_point is not None
    shape = [1] * codes.ndim
    if scale.ndim:
        shape[attribute(source, 'axis', 1)] = -1
    return [
        codes,
        *(
            np.broadcast_to(part.reshape(shape), codes.shape)
            for part in (scale, zero_point)
        ),
    ]


def _evaluate(graph: Graph, node: onnx.NodeProto, array: Array) -> list[Array]:
    """Compute one node on an array."""
    opset = max(o.version for o in graph.model.opset_import if not o.domain)
    feeds = {node.input[0]: np.ascontiguousarray(array)}
    for name in node.input[1:]:
        if name:
            feeds[name] = graph.array(name)  # type: ignore[assignment]
    empty = [helper.make_empty_tensor_value_info(n) for n in feeds]
    outputs = [helper.make_empty_tensor_value_info(n) for n in node.output]
    model = helper.make_model(
        helper.make_graph([node], 'move', empty, outputs),
        opset_imports=[helper.make_opsetid('', opset)],
    )
    return list(ReferenceEvaluator(model).run(None, feeds))


def _axis_of(scale: Array, zero_point: Array) -> int | None:
    """Return the axis along which a grid varies; -1 if none, None if more."""
    found = -1
    for part in (scale, zero_point):
        for axis in range(part.ndim):
            if (
                part.shape[axis] < 2
                or (part == part.take([0], axis=axis)).all()
            ):
                continue
            if found not in (-1, axis):
                return None
            found = axis
    return found


def _along(array: Array, axis: int) -> Array:
    """Return one value per index of an axis, or the only value."""
    if axis < 0:
        return np.asarray(array.reshape(-1)[0])
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)[:, 0]


def float_products(graph: Graph) -> list[str]:
    """Keep products of two activations in floats, with the same operands.

    ONNX Runtime gains nothing from integers in attentions, and its kernels
    for CPUs with AMX are wrong for some numbers of columns, which are tokens
    there (:mod:`.columns`). So the operands are dequantized with scale 1 and
    then scaled, which the runtime makes a factor of the product.

    Returns:
        Names of the products.
    """
    made: dict[str, list[onnx.NodeProto]] = {}
    done: list[str] = []
    for node in graph.nodes:
        if node.op_type != 'MatMul':
            continue
        sources = [_dequantized(graph, node, i) for i in (0, 1)]
        if any(found is None for found in sources):
            continue
        if any(found and is_weight(found[0], graph) for found in sources):
            continue
        done.append(node.name)
        for found in sources:
            assert found is not None
            source, reader, place = found
            pair = _unfused(graph, source, name=f'{node.name}/{place}')
            reader.input[place if reader is node else 0] = pair[1].output[0]
            made.setdefault(source.name, []).extend(pair)
    nodes: list[onnx.NodeProto] = []
    for node in graph.nodes:
        nodes += [node, *made.get(node.name, [])]
    graph.replace_nodes(nodes)
    return done


def _dequantized(
    graph: Graph, node: onnx.NodeProto, place: int
) -> tuple[onnx.NodeProto, onnx.NodeProto, int] | None:
    """Return DequantizeLinear behind an operand, and what reads it.

    Operators in between only move values, and have no other reader.
    """
    reader, name = node, node.input[place]
    while name in graph.producer:
        source = graph.producer[name]
        if source.op_type == 'DequantizeLinear':
            return source, reader, place
        if source.op_type not in ('Transpose', 'Reshape', 'Unsqueeze'):
            return None
        if len(graph.readers[name]) > 1:
            return None
        reader, name = source, source.input[0]
    return None


def _unfused(
    graph: Graph, source: onnx.NodeProto, *, name: str
) -> list[onnx.NodeProto]:
    """Return DequantizeLinear with scale 1, and Mul with its scale."""
    scale = graph.array(source.input[1])
    assert scale is not None
    one = graph.add_constant(np.ones_like(scale), f'{source.input[1]}.one')
    shape = (-1, 1, 1) if scale.size > 1 else ()
    factor = graph.add_constant(
        scale.reshape(shape), f'{source.input[1]}.factor'
    )
    steps = graph.node(
        'DequantizeLinear',
        [source.input[0], one, source.input[2]],
        [f'{name}/steps'],
        name=f'{name}/DequantizeLinear',
    )
    steps.attribute.extend(source.attribute)
    product = graph.node(
        'Mul',
        [f'{name}/steps', factor],
        [f'{name}/scaled'],
        name=f'{name}/Mul',
    )
    return [steps, product]
