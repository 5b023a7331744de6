"""Add the grids that ONNX Runtime needs and a network lacks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
import torch
from torch import Tensor

from taskptq.export.onnx.emission import ACTIVATION, DOMAIN, Grid
from taskptq.export.onnx.gates import choose_gates
from taskptq.export.onnx.graph import Graph, attribute
from taskptq.export.onnx.grids import choose_grid, share_zero_points
from taskptq.export.onnx.lowering import lower
from taskptq.export.onnx.operators import operators_of
from taskptq.export.onnx.runtime import Feeds, inner_session
from taskptq.export.onnx.targets import Target
from taskptq.prepare.grid_plan import (
    SharedGrid,
    gated_tensors,
    plan_grids,
)

# Least signal to noise ratio of an integer gate, in dB.
GATE_LIMIT = 24.0


@dataclass(kw_only=True)
class Completion:
    """What was added to a graph.

    Args:
        added: Tensor -> why it got a grid.
        replaced: Quantizers whose place a shared grid took.
        gates: Inputs of the gates that run in integers -> their precision
            in dB.
        float_gates: Inputs of the gates that stay float.
        shifted: Grids per channel that got one zero point for all.
    """

    added: dict[str, str] = field(default_factory=dict)
    replaced: list[str] = field(default_factory=list)
    gates: dict[str, float] = field(default_factory=dict)
    float_gates: list[str] = field(default_factory=list)
    shifted: list[str] = field(default_factory=list)


def complete(
    graph: Graph,
    grids: dict[str, Grid],
    *,
    feeds: Sequence[Feeds],
    target: Target,
    keep_float: Iterable[str] = (),
    gate_limit: float = GATE_LIMIT,
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
        gate_limit: Least signal to noise ratio, in dB, with which SiLU and
            its kin run in integers.
        outputs: Whether what the network returns gets grids, too.
    """
    operators = operators_of(graph, grids)
    values = _Values(graph, grids, feeds=feeds, target=target)
    gated = gated_tensors(operators)
    done = Completion()
    if gated:
        done.gates = choose_gates(
            gated,
            values.of([*gated, *gated.values()]),
            limit=gate_limit,
        )
        done.float_gates = [x for x in gated if x not in done.gates]
    plan = plan_grids(
        operators,
        outputs=() if outputs else graph.outputs,
        keep_float=set(keep_float),
        gates=done.gates,
        returned=graph.outputs,
    )
    by_node = {
        node.name: attribute(node, 'grid').decode()
        for node in graph.nodes
        if node.domain == DOMAIN and node.op_type == ACTIVATION
    }
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
        running = inner_session(self._graph, wanted) if wanted else None
        for feed in self._feeds:
            arrays = running.run(wanted, dict(feed)) if running else []
            values = {**feed, **dict(zip(wanted, arrays, strict=True))}
            for name in found:
                found[name].append(torch.from_numpy(np.array(values[name])))
        return found
