"""Write scales of groups of layers, and undo those that change an output."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, cast

from torch import Tensor, nn

from taskptq.methods.equalization.scale_groups import GIVERS, LayerGroup
from taskptq.methods.rewriting.statistics import gather
from taskptq.methods.rewriting.verified_rewrite import (
    CalibrationStats,
    RewriteEntry,
    relative_error,
)

logger = logging.getLogger('taskptq')

# Rows of a layer's output that are compared.
MAX_ROWS = 1024


@dataclass(kw_only=True)
class ScalePlan:
    """Planned edits of one group of layers.

    Args:
        group: The layers.
        scales: (C,) float64, divisor of each channel.
        entry: Its entry in the report.
    """

    group: LayerGroup
    scales: Tensor
    entry: RewriteEntry

    def factors(self) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Yield each parameter and the factor to multiply it by."""
        giver = self.group.giver
        bias = cast('nn.Parameter | None', giver.bias)
        for rows in (weight_of(giver), bias):
            if rows is not None:
                shape = (-1, *[1] * (rows.dim() - 1))
                yield rows, (1 / self.scales).reshape(shape)
        for _, layer in self.group.readers:
            yield weight_of(layer), column_factors(layer, self.scales)


@dataclass
class Edits:
    """Write the factors of groups; a layer may be in two of them."""

    plans: Sequence[ScalePlan]
    before: dict[nn.Parameter, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.before = {
            parameter: parameter.detach().clone()
            for plan in self.plans
            for parameter, _ in plan.factors()
        }

    def write(self, plans: Sequence[ScalePlan]) -> None:
        """Apply only these plans to the original weights."""
        products: dict[nn.Parameter, Tensor] = {}
        for plan in plans:
            for parameter, factor in plan.factors():
                value = products.get(parameter)
                if value is None:
                    value = self.before[parameter].double()
                products[parameter] = value * factor.to(value.device)
        for parameter, value in self.before.items():
            parameter.copy_(products.get(parameter, value))


def weight_of(layer: nn.Module) -> nn.Parameter:
    """Return the weight of a giver or reader."""
    return cast('nn.Parameter', layer.weight)


def column_peaks(layer: nn.Module) -> Tensor:
    """Return the largest weight on each input channel, (C,)."""
    weight = weight_of(layer).detach()
    groups = int(getattr(layer, 'groups', 1))
    by_input = weight.reshape(
        groups, weight.shape[0] // groups, weight.shape[1], -1
    )
    return by_input.abs().amax(dim=(1, 3)).flatten().cpu()


def column_factors(layer: nn.Module, scales: Tensor) -> Tensor:
    """Shape scales of the input channels as factors of a layer's weight."""
    weight = weight_of(layer)
    groups = int(getattr(layer, 'groups', 1))
    per_group = scales.reshape(groups, 1, -1).expand(
        -1, weight.shape[0] // groups, -1
    )
    return per_group.reshape(*weight.shape[:2], *[1] * (weight.dim() - 2))


def channels_last(layer: nn.Module, x: Tensor) -> Tensor:
    """Return a layer's input or output as (rows, C)."""
    axis = -1 if isinstance(layer, nn.Linear | nn.LayerNorm) else 1
    return x.detach().movedim(axis, -1).reshape(-1, x.shape[axis])


def apply_plans(
    model: nn.Module,
    plans: Sequence[ScalePlan],
    stats: CalibrationStats,
    *,
    tolerance: float,
) -> None:
    """Write the edits, and undo those that change any layer's output.

    A change reaches all later layers, so several groups may be undone
    because of one.
    """
    edits = Edits(plans)
    before = layer_outputs(model, stats)
    standing = list(plans)
    while standing:
        edits.write(standing)
        errors = output_errors(before, layer_outputs(model, stats), standing)
        bad = [
            name for name, error in errors.items() if not error <= tolerance
        ]
        if not bad:
            break
        failed = [
            plan
            for plan in standing
            if any(name in bad for name, _ in plan.group.readers)
        ]
        for plan in failed or standing:
            plan.entry.status = 'undone'
            plan.entry.reason = (
                f'the output of {bad[0]} changed by {errors[bad[0]]:.2g}, '
                f'more than the tolerance of {tolerance:g}'
            )
            logger.warning(
                '%s: equalization of its input was undone: %s',
                plan.entry.name,
                plan.entry.reason,
            )
        standing = [
            plan for plan in standing if plan.entry.status == 'applied'
        ]
    edits.write(standing)
    for plan in standing:
        plan.entry.max_relative_error = max(
            errors[name] for name, _ in plan.group.readers
        )


def layer_outputs(
    model: nn.Module, stats: CalibrationStats
) -> dict[str, Tensor]:
    """Return rows of each layer's output in the first batch, (rows, C)."""
    found: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            rows = channels_last(module, output)
            found[name] = rows[:: max(1, len(rows) // MAX_ROWS)].cpu().clone()

        return hook

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, GIVERS):
                handle = module.register_forward_hook(watch(name))
                stack.callback(handle.remove)
        stats.forward(model, stats.batches[0])
    return found


def output_errors(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    plans: Sequence[ScalePlan],
) -> dict[str, float]:
    """Return the relative change of each layer's output, scales undone."""
    scales = {plan.group.name: plan.scales for plan in plans}
    errors = {}
    for name, expected in before.items():
        found = after[name].double()
        if name in scales:
            found = found * scales[name]
        errors[name] = relative_error(expected, found)
    ranks = gather(errors)
    names = dict.fromkeys(name for rank in ranks for name in rank)
    return {
        name: max(rank[name] for rank in ranks if name in rank)
        for name in names
    }
