"""Add the grids that ONNX Runtime needs and a network lacks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
import torch
from torch import Tensor

from taskptq.core import (
    AffineQuantizer,
    MinMaxObserver,
    MSEObserver,
    QuantizerConfig,
    QuantSpec,
)
from taskptq.core.functional import affine_to_range
from taskptq.export.onnx.emission import ACTIVATION, DOMAIN, Grid, grid_of
from taskptq.export.onnx.graph import Graph, attribute
from taskptq.export.onnx.lowering import lower
from taskptq.export.onnx.operators import operators_of
from taskptq.export.onnx.runtime import Feeds, inner_session
from taskptq.export.onnx.targets import Target
from taskptq.prepare.common_zero import common_zero_point
from taskptq.prepare.grid_plan import SharedGrid, plan_grids

# Below this SiLU and its kin are flat: the range of their input ends here.
GATE_LOW = -8.0


@dataclass(kw_only=True)
class Completion:
    """What was added to a graph.

    Args:
        added: Tensor -> why it got a grid.
        replaced: Quantizers whose place a shared grid took.
        shifted: Grids per channel that got one zero point for all.
    """

    added: dict[str, str] = field(default_factory=dict)
    replaced: list[str] = field(default_factory=list)
    shifted: list[str] = field(default_factory=list)


def complete(
    graph: Graph,
    grids: dict[str, Grid],
    *,
    feeds: Sequence[Feeds],
    target: Target,
    keep_float: Iterable[str] = (),
    gates: bool = False,
    outputs: bool = False,
) -> Completion:
    """Put the grids that the target needs into a graph with placeholders.

    Where one quantizer reads the tensor already, its grid is taken; of
    several, the one with the least squared error on ``feeds``; without any,
    a range of least squared error is searched there.

    Args:
        graph: Edited in place.
        grids: Grid of each placeholder; gets the new ones.
        feeds: Inputs to calibrate on.
        target: Rules of the runtime.
        keep_float: Tensors that stay float.
        gates: Whether SiLU and its kin run in integers, too.
        outputs: Whether what the network returns gets grids, too.
    """
    plan = plan_grids(
        operators_of(graph, grids),
        outputs=() if outputs else graph.outputs,
        keep_float=set(keep_float),
        gates=gates,
    )
    done = Completion()
    by_node = {
        node.name: attribute(node, 'grid').decode()
        for node in graph.nodes
        if node.domain == DOMAIN and node.op_type == ACTIVATION
    }
    values = _Values(graph, grids, feeds=feeds, target=target)
    samples = values.of([t for shared in plan for t in shared.sources])
    for shared in plan:
        names = dict.fromkeys(by_node[name] for name in shared.replaced)
        grid = choose_grid(
            [grids[name] for name in names],
            [x for name in shared.sources for x in samples[name]],
            name=shared.sources[0].strip('/').replace('/', '.'),
            shared=shared,
            whole=bool(set(shared.sources) & set(graph.outputs)),
        )
        grids.setdefault(grid.name, grid)
        place(graph, shared, grid)
        done.replaced += [n for n in names if n != grid.name]
        reason = 'new' if grid.name not in names else f'that of {grid.name}'
        done.added |= {name: reason for name in shared.sources}
    done.shifted = share_zero_points(grids)
    return done


def share_zero_points(grids: dict[str, Grid]) -> list[str]:
    """Give all channels of an activation one zero point.

    Returns:
        Names of the grids that changed.
    """
    changed = []
    for name, grid in grids.items():
        point = grid.zero_point
        if grid.codes is not None or bool((point == point[0]).all()):
            continue
        low, high = affine_to_range(
            grid.scale,
            point,
            quant_min=grid.quant_min,
            quant_max=grid.quant_max,
        )
        scale, point = common_zero_point(
            low, high, quant_min=grid.quant_min, quant_max=grid.quant_max
        )
        grids[name] = replace(grid, scale=scale, zero_point=point)
        changed.append(name)
    return changed


def choose_grid(
    candidates: Sequence[Grid],
    samples: Sequence[Tensor],
    *,
    name: str,
    shared: SharedGrid,
    whole: bool = False,
) -> Grid:
    """Return the grid of a tensor that several read.

    Args:
        candidates: Grids of the quantizers that read it.
        samples: Its values.
        name: Name of a new grid.
        shared: Who reads it.
        whole: Whether it is an output, whose rare peaks are the detections:
            a new grid then covers all values.
    """
    usable = [g for g in candidates if g.ch_axis is None]
    if not usable:
        low = GATE_LOW if shared.gated else None
        return search_grid(
            [x if low is None else x.clamp(min=low) for x in samples],
            name=name,
            per_channel=shared.free,
            whole=whole,
        )
    if len(usable) == 1:
        return usable[0]
    errors = [sum(squared_error(g, x) for x in samples) for g in usable]
    return usable[int(np.argmin(errors))]


def search_grid(
    samples: Sequence[Tensor],
    *,
    name: str,
    per_channel: bool = False,
    whole: bool = False,
) -> Grid:
    """Return the 8-bit grid of least squared error.

    Args:
        samples: Values, (B, C, ...).
        name: Name of the grid.
        per_channel: Give each channel a scale, for its whole range.
        whole: Cover all values instead.
    """
    config = QuantizerConfig(
        spec=QuantSpec(num_bits=8, symmetric=False),
        per_channel=per_channel,
        observer=MinMaxObserver if whole or per_channel else MSEObserver,
    )
    channels = samples[0].shape[1] if per_channel else None
    quantizer = config.build(num_channels=channels)
    assert isinstance(quantizer, AffineQuantizer)
    for x in samples:
        assert quantizer.observer is not None
        quantizer.observer.observe(x)
    quantizer.calibrate()
    return grid_of(quantizer, name=name)


def squared_error(grid: Grid, x: Tensor) -> float:
    """Return the summed squared error of a grid per tensor."""
    codes = torch.round(x / grid.scale) + grid.zero_point
    codes = codes.clamp(grid.quant_min, grid.quant_max)
    x_hat = (codes - grid.zero_point) * grid.scale
    return float((x_hat - x).square().sum())


def place(graph: Graph, shared: SharedGrid, grid: Grid) -> None:
    """Put one grid behind each tensor that shares it, for all readers."""
    replaced = set(shared.replaced)
    for name in (*shared.sources, *shared.moved):
        nodes = list(graph.nodes)
        was_output = name in graph.outputs
        made = name if was_output else f'{name}_on_grid'
        if was_output:
            name = graph.rename_output(name)
        node = graph.node(
            ACTIVATION,
            [name],
            [made],
            name=f'{name}/grid/Activation',
            domain=DOMAIN,
            grid=grid.name,
        )
        old = [r for r in graph.readers[name] if r.name in replaced]
        graph.redirect(name, made, but=[node.name])
        for reader in old:
            graph.redirect(reader.output[0], made)
        producer = graph.producer.get(name)
        at = 0 if producer is None else index_of(nodes, producer) + 1
        nodes = [
            n
            for n in (*nodes[:at], node, *nodes[at:])
            if n.name not in {r.name for r in old}
        ]
        graph.replace_nodes(nodes)


def index_of(nodes: Sequence[onnx.NodeProto], node: onnx.NodeProto) -> int:
    """Return the place of a node, by its name."""
    return [n.name for n in nodes].index(node.name)


class _Values:
    """Values of the tensors of a graph with placeholders."""

    def __init__(
        self,
        graph: Graph,
        grids: Mapping[str, Grid],
        *,
        feeds: Sequence[Feeds],
        target: Target,
    ) -> None:
        model = onnx.ModelProto()
        model.CopyFrom(graph.model)
        copy = Graph(model)
        copy.constants = dict(graph.constants)
        lower(copy, grids, target=replace(target, zero_points=True))
        self._graph = copy
        self._feeds = feeds

    def of(self, names: Sequence[str]) -> dict[str, list[Tensor]]:
        """Return the values of tensors, one for each of the feeds."""
        inputs = {value.name for value in self._graph.proto.input}
        wanted = [n for n in dict.fromkeys(names) if n not in inputs]
        found: dict[str, list[Tensor]] = {name: [] for name in names}
        running = inner_session(self._graph, wanted)
        for feed in self._feeds:
            arrays = running.run(wanted, dict(feed))
            values = {**feed, **dict(zip(wanted, arrays, strict=True))}
            for name in found:
                found[name].append(torch.from_numpy(np.array(values[name])))
        return found
