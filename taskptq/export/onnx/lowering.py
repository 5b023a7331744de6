"""Put standard operators in the place of placeholders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from taskptq.export.onnx.emission import ACTIVATION, DOMAIN, WEIGHT, Grid
from taskptq.export.onnx.errors import OnnxExportError
from taskptq.export.onnx.graph import Array, Graph, attribute
from taskptq.export.onnx.targets import Target

# Codes of at most so many bits are stored in half bytes.
HALF_BYTE = 4


def lower(graph: Graph, grids: Mapping[str, Grid], *, target: Target) -> None:
    """Replace every placeholder by QuantizeLinear and DequantizeLinear.

    Args:
        graph: Graph with placeholders; edited in place.
        grids: Grid of each placeholder, by its name.
        target: Rules of the runtime.

    Raises:
        OnnxExportError: If a grid cannot be written for the target.
    """
    nodes: list[onnx.NodeProto] = []
    weights: dict[str, str] = {}
    renamed: dict[str, str] = {}
    for node in graph.nodes:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
        if node.domain != DOMAIN:
            nodes.append(node)
            continue
        grid = grids[attribute(node, 'grid').decode()]
        if node.op_type == ACTIVATION:
            nodes += _activation(graph, node, grid, target=target)
        elif node.op_type == WEIGHT:
            # A layer that runs several times has one weight all the same.
            if grid.name not in weights:
                weights[grid.name] = node.output[0]
                nodes += _weight(graph, node, grid)
            renamed[node.output[0]] = weights[grid.name]
    graph.replace_nodes(nodes)


def drop_unused(graph: Graph, grids: dict[str, Grid]) -> list[str]:
    """Forget grids whose placeholder did not reach the graph.

    The tracer leaves out what no output depends on, such as the last
    convolution of a backbone of which only earlier maps are read.

    Args:
        graph: Graph with placeholders.
        grids: Grid of each placeholder, by its name; edited in place.

    Returns:
        Names of the grids that were dropped.
    """
    used = {
        attribute(node, 'grid').decode()
        for node in graph.nodes
        if node.domain == DOMAIN
    }
    unused = [name for name in grids if name not in used]
    for name in unused:
        del grids[name]
    return unused


def storage_of(grid: Grid, *, target: Target) -> tuple[type, int]:
    """Return the integer type of an activation and what is added to codes.

    Raises:
        OnnxExportError: If the target has no such grid.
    """
    if not target.zero_points:
        if grid.num_bits > 8:
            raise OnnxExportError(
                f'{grid.name} has {grid.num_bits} bits, and {target.name} '
                'takes 8 at most: quantize with 8 bits there'
            )
        if grid.quant_min >= 0 or bool(grid.zero_point.any()):
            raise OnnxExportError(
                f'{grid.name} has a zero point or codes without a sign, '
                f'which {target.name} does not read: quantize with '
                f"deploy='{target.name}' in the recipe"
            )
        return np.int8, 0
    if grid.num_bits > 8:
        return np.int16, -(2 ** (grid.num_bits - 1)) - grid.quant_min
    return np.uint8, -grid.quant_min


def _activation(
    graph: Graph, node: onnx.NodeProto, grid: Grid, *, target: Target
) -> list[onnx.NodeProto]:
    """Return QuantizeLinear, Clip below 8 bits, and DequantizeLinear."""
    kind, shift = storage_of(grid, target=target)
    scale, zero_point = constants_of(graph, grid, kind=kind, shift=shift)
    base = node.name.rpartition('/')[0] or f'/{grid.name}'
    codes = f'{node.output[0]}_codes'
    axis: dict[str, Any] = (
        {} if grid.ch_axis is None else {'axis': grid.ch_axis}
    )
    made = [
        graph.node(
            'QuantizeLinear',
            [node.input[0], scale, zero_point],
            [codes],
            name=f'{base}/QuantizeLinear',
            **axis,
        )
    ]
    low, high = grid.quant_min + shift, grid.quant_max + shift
    bounds = np.iinfo(kind)
    if low > bounds.min or high < bounds.max:
        limits = [
            graph.add_constant(np.array(limit, kind), f'{grid.name}.{end}')
            for end, limit in (('quant_min', low), ('quant_max', high))
        ]
        clipped = f'{codes}_clipped'
        made.append(
            graph.node(
                'Clip', [codes, *limits], [clipped], name=f'{base}/Clip'
            )
        )
        codes = clipped
    made.append(
        graph.node(
            'DequantizeLinear',
            [codes, scale, zero_point],
            [node.output[0]],
            name=f'{base}/DequantizeLinear',
            **axis,
        )
    )
    return made


def _weight(
    graph: Graph, node: onnx.NodeProto, grid: Grid
) -> list[onnx.NodeProto]:
    """Return DequantizeLinear behind the integer codes of a weight."""
    assert grid.codes is not None
    shift = -(2 ** (grid.num_bits - 1)) - grid.quant_min
    kind = np.int8 if grid.num_bits <= 8 else np.int16
    scale, zero_point = constants_of(graph, grid, kind=kind, shift=shift)
    codes = (grid.codes.numpy() + shift).astype(kind)
    stored = graph.add_constant(codes, f'{grid.name}.codes')
    axis: dict[str, Any] = (
        {} if grid.ch_axis is None else {'axis': grid.ch_axis}
    )
    return [
        graph.node(
            'DequantizeLinear',
            [stored, scale, zero_point],
            [node.output[0]],
            name=f'/{grid.name}/DequantizeLinear',
            **axis,
        )
    ]


def constants_of(
    graph: Graph, grid: Grid, *, kind: type, shift: int
) -> tuple[str, str]:
    """Add a grid's scale and zero point; return their names."""
    scale = grid.scale.numpy().astype(np.float32)
    zero_point: Array = (grid.zero_point.numpy() + shift).astype(kind)
    if grid.ch_axis is None:
        scale, zero_point = scale.reshape(()), zero_point.reshape(())
    return (
        graph.add_constant(scale, f'{grid.name}.scale'),
        graph.add_constant(zero_point, f'{grid.name}.zero_point'),
    )


def store_half_bytes(graph: Graph, grids: Mapping[str, Grid]) -> int:
    """Store weights of at most 4 bits as INT4, with a Cast to INT8 behind.

    Runtimes fold the Cast when they load the file; INT4 straight into
    DequantizeLinear would leave the layer float in ONNX Runtime.

    Returns:
        How many weights.
    """
    nodes: list[onnx.NodeProto] = []
    done: dict[str, str] = {}
    for node in graph.nodes:
        name = node.input[0] if node.op_type == 'DequantizeLinear' else ''
        values = graph.array(name) if name else None
        if values is not None and _fits_half_byte(name, values, grids):
            if name not in done:
                done[name] = f'{name}.int8'
                tensor = helper.make_tensor(
                    f'{name}.int4',
                    TensorProto.INT4,
                    values.shape,
                    values.reshape(-1).astype(np.int64),
                )
                graph.constants[tensor.name] = tensor
                nodes.append(
                    graph.node(
                        'Cast',
                        [tensor.name],
                        [done[name]],
                        name=f'/{name}/Cast',
                        to=TensorProto.INT8,
                    )
                )
            node.input[0] = done[name]
        nodes.append(node)
    graph.replace_nodes(nodes)
    return len(done)


def _fits_half_byte(
    name: str, values: Array, grids: Mapping[str, Grid]
) -> bool:
    weight = name.partition('.codes')[0]
    return (
        values.dtype == np.int8
        and weight in grids
        and grids[weight].num_bits <= HALF_BYTE
    )
