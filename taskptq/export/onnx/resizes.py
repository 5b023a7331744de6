"""Interpolation in floats between two grids, for ONNX Runtime."""

from __future__ import annotations

import numpy as np
import onnx

from taskptq.export.onnx.graph import Graph, attribute

__all__ = ['float_resizes']


def float_resizes(graph: Graph) -> int:
    """Let ONNX Runtime interpolate dequantized values, not codes.

    It moves a Resize between two equal grids to their codes. There it rounds
    down what it interpolates, half a step too low on average, and takes up to
    twice the time. Steps that differ in their last bit keep it from that.
    Nearest neighbors only move codes, and stay. Both sides have grids of
    their own, which differ but for chance; a quantizer that one module calls
    on both, or a file of an older version, has equal ones.

    Args:
        graph: Graph of standard operators; edited in place.

    Returns:
        How many.
    """
    done = 0
    for node in list(graph.nodes):
        if node.op_type != 'Resize' or attribute(node, 'mode') in (
            None,
            b'nearest',
        ):
            continue
        before = graph.producer.get(node.input[0])
        if before is None or before.op_type != 'DequantizeLinear':
            continue
        for reader in graph.readers.get(node.output[0], []):
            if reader.op_type != 'QuantizeLinear':
                continue
            scales = [graph.array(n.input[1]) for n in (before, reader)]
            first, second = scales
            assert first is not None
            assert second is not None
            if np.array_equal(first, second):
                _next_step(graph, reader)
                done += 1
    graph.refresh()
    return done


def _next_step(graph: Graph, node: onnx.NodeProto) -> None:
    """Make the steps of a grid larger by their last bit."""
    scale = graph.array(node.input[1])
    assert scale is not None
    steps = np.nextafter(scale, np.float32(np.inf))
    name = graph.add_constant(steps, f'{node.input[1]}.next')
    readers = list(graph.readers.get(node.output[0], []))
    # Below 8 bits a Clip comes in between.
    for clip in [found for found in readers if found.op_type == 'Clip']:
        readers += graph.readers.get(clip.output[0], [])
    for found in (node, *readers):
        if found.op_type in ('QuantizeLinear', 'DequantizeLinear'):
            found.input[1] = name
