"""Equalize the channels between layers, folded into their weights.

A ReLU (or nothing) between two layers commutes with a positive scale per
channel: ``W2 relu(W1 x + b1) = (W2 S) relu(S^-1 (W1 x + b1))``. Scaling makes
channels of different magnitude fit one per-tensor range better (Nagel et al.,
'Data-Free Quantization Through Weight Equalization and Bias Correction', ICCV
2019, section 4.1). An exponent sets how much of the difference moves into the
reader's weights (Xiao et al., 'SmoothQuant', ICML 2023, equation 4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.calibration.calibrate import calibration_mode
from taskptq.core.settings import Number
from taskptq.methods.equalization.edits import (
    ScalePlan,
    apply_plans,
    channels_last,
    column_peaks,
)
from taskptq.methods.equalization.scale_groups import (
    LayerGroup,
    find_layer_groups,
)
from taskptq.methods.equalization.search import (
    ALPHAS,
    GroupErrors,
    group_errors,
    no_change,
)
from taskptq.methods.rewriting.statistics import gather, watch_layer
from taskptq.methods.rewriting.verified_rewrite import (
    PATTERNS,
    TOLERANCE_RULE,
    CalibrationStats,
    RewriteEntry,
    RewriteReport,
)
from taskptq.prepare.patterns import check_all_used, matches
from taskptq.registry import REWRITES

__all__ = ['CrossLayerEqualization', 'equalizing_scales']

SEARCH = 'search'
# Largest change of a layer's output that float32 rounding explains, relative
# to the output's largest magnitude; it grows from layer to layer.
TOLERANCE = 1e-4


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


@REWRITES.register_module()
class CrossLayerEqualization:
    """Scale the channels between layers to suit one range, exactly.

    Applies to every linear layer and convolution that reads another layer,
    its batch norm or a layer norm through ReLUs (also leaky ones and PReLUs)
    or nothing, if nothing else reads the same channels. These layers are
    found by watching the float model run.

    Args:
        alpha: See :func:`equalizing_scales`; 'search' takes for each group
            the one of 20 with the least output error of the quantized
            readers (as AWQ does, Lin et al., MLSys 2024), or no scales if
            none lowers it. The recipe's own bits count.
        limit: See :func:`equalizing_scales`.
        patterns: Names of the layers whose inputs are equalized, as in a
            QConfig; None is all.
        tolerance: Largest relative change of any layer's output.

    Raises:
        ValueError: If ``alpha`` is no number in [0, 1] nor 'search', or
            ``limit`` is below 1.
    """

    def __init__(
        self,
        *,
        alpha: float | str = 0.5,
        limit: float = 100.0,
        patterns: Sequence[str] | None = None,
        tolerance: float = TOLERANCE,
    ) -> None:
        self.alpha = (
            alpha
            if isinstance(alpha, str) and alpha == SEARCH
            else Number(low=0, high=1).read(alpha, name='alpha')
        )
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
            found: Mapping[str, GroupErrors] = {}
            if self.alpha == SEARCH:
                found = group_errors(model, groups, stats)
            plans = [
                self._plan(group, peaks, found.get(group.name))
                for group in groups
            ]
            apply_plans(
                model,
                [plan for plan in plans if plan.entry.status == 'applied'],
                stats,
                tolerance=self.tolerance,
            )
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

    def _plan(
        self,
        group: LayerGroup,
        peaks: Mapping[str, Tensor],
        errors: GroupErrors | None,
    ) -> ScalePlan:
        """Choose the scales of a group, without writing anything."""
        activation = torch.stack(
            [peaks[name] for name, _ in group.readers]
        ).amax(dim=0)
        weight = torch.stack(
            [column_peaks(layer) for _, layer in group.readers]
        ).amax(dim=0)
        entry = RewriteEntry(
            name=', '.join(name for name, _ in group.readers),
            part='input',
            status='applied',
            details={'giver': group.name},
        )
        if errors is None:
            assert not isinstance(self.alpha, str)
            scales = equalizing_scales(
                activation, weight, alpha=self.alpha, limit=self.limit
            )
        else:
            scales = self._searched(activation, weight, errors, entry)
        entry.details |= {
            'scales': [float(scales.min()), float(scales.max())],
            'max_to_median_before': _spread(activation),
            'max_to_median_after': _spread(activation.double() / scales),
        }
        return ScalePlan(group=group, scales=scales, entry=entry)

    def _searched(
        self,
        activation: Tensor,
        weight: Tensor,
        errors: GroupErrors,
        entry: RewriteEntry,
    ) -> Tensor:
        """Return the scales of least error; 1 where there is nothing to win.

        Enters what was found in the report's entry.
        """
        same = torch.ones_like(activation, dtype=torch.float64)
        reason = no_change(errors)
        if reason:
            entry.status, entry.reason = 'unchanged', reason
            return same
        before = errors.total(same)
        best, alpha, scales = before, None, same
        for candidate in ALPHAS:
            found = equalizing_scales(
                activation, weight, alpha=candidate, limit=self.limit
            )
            error = errors.total(found)
            if error < best:
                best, alpha, scales = error, candidate, found
        entry.details |= {
            'error_before': before,
            'error_after': best,
            'alpha': alpha,
        }
        if alpha is None:
            entry.status = 'unchanged'
            entry.reason = 'no exponent lowers the error of its readers'
        return scales


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


def _input_peaks(
    model: nn.Module, groups: Sequence[LayerGroup], stats: CalibrationStats
) -> dict[str, Tensor]:
    """Return the largest magnitude of each reader's input channels, (C,)."""
    found: dict[str, Tensor] = {}

    def watch(name: str, layer: nn.Module) -> Any:
        def add(x: Tensor) -> None:
            rows = channels_last(layer, x).abs()
            # An image without proposals has none
            peaks = torch.cat([rows, rows.new_zeros(1, rows.shape[1])])
            peaks = peaks.amax(dim=0)
            if not bool(peaks.isfinite().all()):
                raise ValueError(
                    f'the input of {name} contains NaN or infinity: check '
                    'the float model and its input normalization'
                )
            peaks = peaks.cpu()
            found[name] = torch.maximum(found.get(name, peaks), peaks)

        return watch_layer(layer, add)

    with ExitStack() as stack:
        for group in groups:
            for name, layer in group.readers:
                stack.callback(watch(name, layer).remove)
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
