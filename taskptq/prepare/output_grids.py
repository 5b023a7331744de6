"""Put the grids that a runtime needs on outputs into a prepared model.

A recipe that names a runtime (``deploy='onnxruntime'``) simulates what its
integer layers do: the two sides and the result of a residual sum lie on
grids, and a tensor that several layers read has one grid for all of them.
Grids that only floats read (before SiLU, of the outputs) cost next to
nothing with a scale for each channel, and are added by the export.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from taskptq.core import Quantizer, float_only
from taskptq.modules.base import build_quantizer
from taskptq.modules.conv import QuantConv2d
from taskptq.modules.linear import QuantLinear
from taskptq.modules.output_grid import CHILD, add_output_grid
from taskptq.prepare.grid_plan import (
    SharedGrid,
    plan_grids,
    plan_residuals,
)
from taskptq.prepare.output_trace import Trace, trace_operators
from taskptq.prepare.qconfig import QConfig

logger = logging.getLogger('taskptq')

# Fewer bits in a residual stream cost more than they save.
MIN_OUTPUT_BITS = 8
# Layers that read their input as it comes if they have no quantizer for it.
LAYERS = (QuantConv2d, QuantLinear)


@dataclass(kw_only=True)
class OutputGrid:
    """One grid on the outputs of some modules.

    Args:
        modules: Qualified names of the modules.
        replaced: Qualified names of the quantizers that it stands in for.
    """

    modules: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types."""
        return {
            'modules': list(self.modules),
            'replaced': list(self.replaced),
        }


def find_output_grids(
    model: nn.Module, run: Callable[[], Any], *, runtime: str
) -> list[OutputGrid]:
    """Return the output grids that a prepared model lacks.

    Tensors that no module returns, such as sums inside of a forward, are
    left to the export.

    Args:
        model: Prepared model; its quantizers are switched off.
        run: Runs it once on a batch.
        runtime: Name of the runtime; OpenVINO needs none.
    """
    if runtime not in ('onnxruntime', 'tensorrt'):
        return []
    with float_only(model):
        trace = trace_operators(model, run)
    if runtime == 'tensorrt':
        plan = plan_residuals(trace.operators)
    else:
        plan = plan_grids(trace.operators, outputs=trace.outputs)
        plan = [shared for shared in plan if not shared.free]
    found: list[OutputGrid] = []
    for shared in plan:
        modules = _modules_of(shared, trace)
        if not modules:
            continue
        grid = OutputGrid(
            modules=modules,
            replaced=list(
                dict.fromkeys(
                    name.partition('#')[0] for name in shared.replaced
                )
            ),
        )
        _merge(found, grid)
    return found


def _modules_of(shared: SharedGrid, trace: Trace) -> list[str]:
    """Return the modules whose outputs are the sources of a grid.

    Empty if some source is no module's, is read before the module returns
    it, or if the module returns others too.
    """
    names: list[str] = []
    for source in shared.sources:
        first = trace.first_reader(source)
        chosen = [
            name
            for name, before in trace.givers.get(source, [])
            if len(trace.returned[name]) == 1 and before <= first
        ]
        if not chosen:
            return []
        names.append(chosen[0])
    return names


def _merge(found: list[OutputGrid], grid: OutputGrid) -> None:
    for other in found:
        if set(other.replaced) & set(grid.replaced):
            # One quantizer of a shared layer reads both.
            other.modules += [
                m for m in grid.modules if m not in other.modules
            ]
            other.replaced += [
                r for r in grid.replaced if r not in other.replaced
            ]
            return
    found.append(grid)


def place_output_grids(
    model: nn.Module,
    qconfig: QConfig,
    recorded: Sequence[Mapping[str, Any]],
) -> None:
    """Give modules their output grids, in place.

    Args:
        model: Prepared model.
        qconfig: Recipe: the grids follow its activations, at 8 bits or more.
        recorded: Plain grids of :func:`find_output_grids`, or of a file.

    Raises:
        ValueError: If the model has no such module or quantizer.
    """
    if not recorded:
        return
    grids = [OutputGrid(**entry) for entry in recorded]
    modules = dict(model.named_modules())
    for grid in grids:
        for name in (*grid.modules, *grid.replaced):
            if name not in modules:
                raise ValueError(
                    f'the recorded decisions expect {name!r}, which this '
                    'model does not have: they were made for another one'
                )
    for grid in grids:
        quantizer = output_quantizer(qconfig, grid.modules[0])
        if quantizer is None:
            continue
        for name in grid.modules:
            add_output_grid(modules[name], quantizer)
        for name in grid.replaced:
            _replace(modules, name, quantizer)
    logger.info('%d output grids for %s', len(grids), qconfig.deploy)


def output_quantizer(qconfig: QConfig, name: str) -> Quantizer | None:
    """Return a quantizer as those of activations, of 8 bits or more.

    Args:
        qconfig: Recipe.
        name: Module, whose quantizer overrides may name.
    """
    config = qconfig.scheme(f'{name}.{CHILD}').activation
    if config is None:
        return None
    bits = max(config.spec.num_bits, MIN_OUTPUT_BITS)
    return build_quantizer(config.with_bits(bits))


def _replace(
    modules: Mapping[str, nn.Module], name: str, quantizer: Quantizer
) -> None:
    """Drop a layer's own quantizer if the grid before it is as fine."""
    owner, _, point = name.rpartition('.')
    own = modules[name]
    if (
        point == 'input_quantizer'
        and isinstance(modules[owner], LAYERS)
        and isinstance(own, Quantizer)
        and own.spec.num_bits == quantizer.spec.num_bits
    ):
        setattr(modules[owner], point, None)
