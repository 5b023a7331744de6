"""Weights whose steps are too fine for a bias of 32 bits.

A runtime sums products of codes and a bias in 32 bits, in steps of the input
times steps of the weight. A channel whose weights are nearly 0, as pruned and
folded ones are, has steps so fine that its bias does not fit, and ONNX Runtime
lets it overflow without a word.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import torch
from torch import Tensor

from taskptq.core.functional import per_channel
from taskptq.export.onnx.biases import producer_of_values
from taskptq.export.onnx.emission import ACTIVATION, DOMAIN, WEIGHT, Grid
from taskptq.export.onnx.graph import Array, Graph, attribute

__all__ = ['coarsen_weights']

# Bound of a bias in steps; the sums of products have the rest of 2^31.
MOST_STEPS = 2**30


def coarsen_weights(graph: Graph, grids: dict[str, Grid]) -> dict[str, int]:
    """Give channels whose bias would overflow coarser steps of weights.

    A step grows to |bias| / (step of the input * 2^30). Rounded to it, a
    weight moves by at most half of that, so each product moves by less than
    2^-23 of the bias.

    Args:
        graph: Graph with placeholders.
        grids: Grid of each placeholder, by its name; edited in place.

    Returns:
        Name of each weight that changed -> number of its channels.
    """
    least: dict[str, Array] = {}
    for node in graph.nodes:
        found = _steps_needed(graph, node, grids)
        if found is not None:
            name, steps = found
            least[name] = np.maximum(least.get(name, steps), steps)
    changed = {}
    for name, steps in least.items():
        grid = grids[name]
        scale = torch.maximum(grid.scale, torch.from_numpy(steps))
        channels = int((scale > grid.scale).sum())
        if channels:
            grids[name] = _coarser(grid, scale)
            changed[name] = channels
    return changed


def _steps_needed(
    graph: Graph, node: onnx.NodeProto, grids: dict[str, Grid]
) -> tuple[str, Array] | None:
    """Return a layer's weight and its least steps, (C,); None if any do."""
    if node.op_type not in ('Conv', 'Gemm') or len(node.input) < 3:
        return None
    bias = graph.array(node.input[2])
    data = _grid(graph, producer_of_values(graph, node.input[0]), grids)
    weight = _grid(graph, graph.producer.get(node.input[1]), grids)
    if bias is None or data is None or weight is None:
        return None
    if weight.codes is None or data.codes is not None:
        return None
    if data.scale.numel() > 1 or weight.scale.shape != bias.shape:
        return None
    steps = np.abs(bias.astype(np.float64)) / float(data.scale) / MOST_STEPS
    return weight.name, steps.astype(np.float32)


def _grid(
    graph: Graph, node: onnx.NodeProto | None, grids: dict[str, Grid]
) -> Grid | None:
    """Return the grid of a placeholder, None if the node is none."""
    if (
        node is None
        or node.domain != DOMAIN
        or node.op_type not in (ACTIVATION, WEIGHT)
    ):
        return None
    return grids[attribute(node, 'grid').decode()]


def _coarser(grid: Grid, scale: Tensor) -> Grid:
    """Return the same weight on larger steps."""
    assert grid.codes is not None
    ndim, axis = grid.codes.dim(), grid.ch_axis

    def spread(values: Tensor) -> Tensor:
        return per_channel(values, ndim=ndim, ch_axis=axis)

    point = spread(grid.zero_point)
    ratio = spread(grid.scale.double() / scale.double())
    codes = torch.round((grid.codes - point) * ratio) + point
    # Codes of channels that keep their steps stay what they are.
    codes = torch.where(ratio == 1, grid.codes, codes.int())
    return replace(grid, scale=scale, codes=codes)
