"""Equalize the channels between layers, folded into their weights.

A ReLU (or nothing) between two layers commutes with a positive scale per
channel: ``W2 relu(W1 x + b1) = (W2 S) relu(S^-1 (W1 x + b1))``. Scaling makes
channels of different magnitude fit one per-tensor range better (Nagel et al.,
'Data-Free Quantization Through Weight Equalization and Bias Correction', ICCV
2019, section 4.1). An exponent sets how much of the difference moves into the
reader's weights (Xiao et al., 'SmoothQuant', ICML 2023, equation 4).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from taskptq.calibration.calibrate import calibration_mode
from taskptq.core.settings import Number
from taskptq.methods.equalization.scale_groups import (
    GIVERS,
    LayerGroup,
    find_layer_groups,
)
from taskptq.methods.rewriting.statistics import gather
from taskptq.methods.rewriting.verified_rewrite import (
    PATTERNS,
    TOLERANCE_RULE,
    CalibrationStats,
    RewriteEntry,
    RewriteReport,
    relative_error,
)
from taskptq.prepare.patterns import check_all_used, matches
from taskptq.registry import REWRITES

__all__ = ['CrossLayerEqualization', 'equalizing_scales']

logger = logging.getLogger('taskptq')

# Largest change of a layer's output that float32 rounding explains, relative
# to the output's largest magnitude; it grows from layer to layer.
TOLERANCE = 1e-4
# Rows of a layer's output that are compared.
MAX_ROWS = 1024


def equalizing_scales(
    activation: Tensor, weight: Tensor, *, alpha: float, limit: float
) -> Tensor:
    """Return the divisor of each channel, ``a^alpha / w^(1 - alpha)``.

    Args:
        activation: (C,), largest magnitude of each channel, a.
        weight: (C,), largest weight that reads each channel, w.
        alpha: 0 equalizes the columns of the weights, 1 the activations.
        limit: Scales differ from the median by at most this factor.

    Returns:
        (C,) float64, of median 1; 1 where a channel or its weights are 0.
    """
    activation, weight = activation.double(), weight.double()
    live = (activation > 0) & (weight > 0)
    scales = torch.ones_like(activation)
    if live.any():
        chosen = activation[live] ** alpha / weight[live] ** (1 - alpha)
        chosen = chosen / chosen.median()
        scales[live] = chosen.clamp(1 / limit, limit)
    return scales


@dataclass(kw_only=True)
class _Plan:
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
        for rows in (_weight(giver), bias):
            if rows is not None:
                shape = (-1, *[1] * (rows.dim() - 1))
                yield rows, (1 / self.scales).reshape(shape)
        for _, layer in self.group.readers:
            yield _weight(layer), _to_weight(layer, self.scales)


@dataclass
class _Edits:
    """Write the factors of groups; a layer may be in two of them."""

    plans: Sequence[_Plan]
    before: dict[nn.Parameter, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.before = {
            parameter: parameter.detach().clone()
            for plan in self.plans
            for parameter, _ in plan.factors()
        }

    def write(self, plans: Sequence[_Plan]) -> None:
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


@REWRITES.register_module()
class CrossLayerEqualization:
    """Scale the channels between layers to suit one range, exactly.

    Applies to every linear layer and convolution that reads another layer,
    its batch norm or a layer norm through ReLUs or nothing, if nothing else
    reads the same channels. These layers are found by watching the float
    model run.

    Args:
        alpha: See :func:`equalizing_scales`.
        limit: See :func:`equalizing_scales`.
        patterns: Names of the layers whose inputs are equalized, as in a
            QConfig; None is all.
        tolerance: Largest relative change of any layer's output.

    Raises:
        ValueError: If ``alpha`` is outside [0, 1] or ``limit`` below 1.
    """

    def __init__(
        self,
        *,
        alpha: float = 0.5,
        limit: float = 100.0,
        patterns: Sequence[str] | None = None,
        tolerance: float = TOLERANCE,
    ) -> None:
        self.alpha = Number(low=0, high=1).read(alpha, name='alpha')
        self.limit = Number(low=1, high=1e6).read(limit, name='limit')
        self.patterns = PATTERNS.read(patterns, name='patterns')
        self.tolerance = TOLERANCE_RULE.read(tolerance, name='tolerance')

    def __call__(
        self, model: nn.Module, stats: CalibrationStats
    ) -> RewriteReport:
        """Rewrite a float model in place.

        Raises:
            ValueError: If there is no calibration data, an activation is not
                finite, or a pattern matches no layer to equalize.
        """
        if not stats.batches:
            raise ValueError(
                'calibration set is empty: give at least one batch'
            )
        with calibration_mode(model):
            groups = self._chosen(
                _common(
                    find_layer_groups(
                        model, lambda: stats.forward(model, stats.batches[0])
                    )
                )
            )
            peaks = _input_peaks(model, groups, stats)
            plans = [self._plan(group, peaks) for group in groups]
            _apply(model, plans, stats, tolerance=self.tolerance)
        return RewriteReport(
            rewrite=type(self).__name__,
            settings={
                'alpha': self.alpha,
                'limit': self.limit,
                'patterns': None
                if self.patterns is None
                else list(self.patterns),
            },
            entries=[plan.entry for plan in plans],
        )

    def _chosen(self, groups: Sequence[LayerGroup]) -> list[LayerGroup]:
        if self.patterns is None:
            return list(groups)
        names = [name for group in groups for name, _ in group.readers]
        check_all_used(
            self.patterns, names, argument='CrossLayerEqualization.patterns'
        )
        return [
            group
            for group in groups
            if any(
                matches(name, pattern)
                for name, _ in group.readers
                for pattern in self.patterns
            )
        ]

    def _plan(self, group: LayerGroup, peaks: Mapping[str, Tensor]) -> _Plan:
        """Choose the scales of a group, without writing anything."""
        activation = torch.stack(
            [peaks[name] for name, _ in group.readers]
        ).amax(dim=0)
        weight = torch.stack(
            [_column_peaks(layer) for _, layer in group.readers]
        ).amax(dim=0)
        scales = equalizing_scales(
            activation, weight, alpha=self.alpha, limit=self.limit
        )
        after = activation.double() / scales
        entry = RewriteEntry(
            name=', '.join(name for name, _ in group.readers),
            part='input',
            status='applied',
            details={
                'giver': group.name,
                'scales': [float(scales.min()), float(scales.max())],
                'max_to_median_before': _spread(activation),
                'max_to_median_after': _spread(after),
            },
        )
        return _Plan(group=group, scales=scales, entry=entry)


def _common(groups: Sequence[LayerGroup]) -> list[LayerGroup]:
    """Keep the groups that every rank found, as all must edit equally."""
    own = [
        (group.name, *(name for name, _ in group.readers)) for group in groups
    ]
    ranks = gather(own)
    return [
        group
        for group, names in zip(groups, own, strict=True)
        if all(names in rank for rank in ranks)
    ]


def _spread(peaks: Tensor) -> float | None:
    """Return largest over median, among channels that are not always 0."""
    live = peaks[peaks > 0]
    return float(live.max() / live.median()) if live.numel() else None


def _weight(layer: nn.Module) -> nn.Parameter:
    return cast('nn.Parameter', layer.weight)


def _column_peaks(layer: nn.Module) -> Tensor:
    """Return the largest weight on each input channel, (C,)."""
    weight = _weight(layer).detach()
    groups = int(getattr(layer, 'groups', 1))
    by_input = weight.reshape(
        groups, weight.shape[0] // groups, weight.shape[1], -1
    )
    return by_input.abs().amax(dim=(1, 3)).flatten().cpu()


def _to_weight(layer: nn.Module, scales: Tensor) -> Tensor:
    """Shape scales of the input channels as factors of a layer's weight."""
    weight = _weight(layer)
    groups = int(getattr(layer, 'groups', 1))
    per_group = scales.reshape(groups, 1, -1).expand(
        -1, weight.shape[0] // groups, -1
    )
    return per_group.reshape(*weight.shape[:2], *[1] * (weight.dim() - 2))


def _channels_last(layer: nn.Module, x: Tensor) -> Tensor:
    """Return a layer's input or output as (rows, C)."""
    axis = -1 if isinstance(layer, nn.Linear | nn.LayerNorm) else 1
    return x.detach().movedim(axis, -1).reshape(-1, x.shape[axis])


def _input_peaks(
    model: nn.Module, groups: Sequence[LayerGroup], stats: CalibrationStats
) -> dict[str, Tensor]:
    """Return the largest magnitude of each reader's input channels, (C,)."""
    found: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            peaks = _channels_last(module, args[0]).abs().amax(dim=0)
            if not bool(peaks.isfinite().all()):
                raise ValueError(
                    f'the input of {name} contains NaN or infinity: check '
                    'the float model and its input normalization'
                )
            peaks = peaks.cpu()
            found[name] = torch.maximum(found.get(name, peaks), peaks)

        return hook

    with ExitStack() as stack:
        for group in groups:
            for name, layer in group.readers:
                handle = layer.register_forward_pre_hook(watch(name))
                stack.callback(handle.remove)
        for batch in stats.batches:
            stats.forward(model, batch)
    ranks = gather(found)
    names = dict.fromkeys(name for rank in ranks for name in rank)
    return {
        name: torch.stack([rank[name] for rank in ranks if name in rank]).amax(
            dim=0
        )
        for name in names
    }


def _apply(
    model: nn.Module,
    plans: Sequence[_Plan],
    stats: CalibrationStats,
    *,
    tolerance: float,
) -> None:
    """Write the edits, and undo those that change any layer's output.

    A change reaches all later layers, so several groups may be undone
    because of one.
    """
    edits = _Edits(plans)
    before = _outputs(model, stats)
    standing = list(plans)
    while standing:
        edits.write(standing)
        errors = _errors(before, _outputs(model, stats), standing)
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


def _outputs(model: nn.Module, stats: CalibrationStats) -> dict[str, Tensor]:
    """Return rows of each layer's output in the first batch, (rows, C)."""
    found: dict[str, Tensor] = {}

    def watch(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Tensor) -> None:
            rows = _channels_last(module, output)
            found[name] = rows[:: max(1, len(rows) // MAX_ROWS)].cpu().clone()

        return hook

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, GIVERS):
                handle = module.register_forward_hook(watch(name))
                stack.callback(handle.remove)
        stats.forward(model, stats.batches[0])
    return found


def _errors(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    plans: Sequence[_Plan],
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
