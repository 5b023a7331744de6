"""Outlier Suppression+: shift and scale the channels that layers read.

Wei et al., 'Outlier Suppression+: Accurate quantization of large language
models by equivalent and optimal shifting and scaling', EMNLP 2023. With
x' = (x - z) / s, W' = W s and b' = b + W z a layer's output stays,
``W' x' + b' = W x + b``, and LayerNorm takes over the rest:
gamma' = gamma / s, beta' = (beta - z) / s. z is the midpoint of each channel.
Channels wider than a threshold t are narrowed to it, s = max(1, M / t); t is
searched for the least output error of the quantized readers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.calibration.calibrate import calibration_mode
from taskptq.core.settings import Flag, Number, Whole
from taskptq.methods.outlier_suppression.norm_groups import (
    NormGroup,
    find_norm_groups,
)
from taskptq.methods.outlier_suppression.paddings import (
    Paddings,
    replay_paddings,
)
from taskptq.methods.rewriting.layer_edits import (
    LayerEdit,
    apply_layer_edits,
    outcome,
)
from taskptq.methods.rewriting.reader_error import ReaderError, layer_schemes
from taskptq.methods.rewriting.readers import collect_inputs
from taskptq.methods.rewriting.statistics import gather, open_attention
from taskptq.methods.rewriting.verified_rewrite import (
    PATTERNS,
    TOLERANCE_RULE,
    CalibrationStats,
    RewriteEntry,
    RewriteReport,
    RowEdit,
)
from taskptq.prepare.patterns import check_all_used, matches
from taskptq.registry import REWRITES

__all__ = [
    'ChannelShiftScale',
    'folded_norm',
    'folded_reader',
    'threshold_scales',
]

TOLERANCE = 1e-4


def threshold_scales(peaks: Tensor, threshold: float) -> Tensor:
    """Return the divisor of each channel, ``max(1, M / t)``.

    >>> threshold_scales(torch.tensor([2.0, 2.0, 1.0]), 1.5)
    tensor([1.3333, 1.3333, 1.0000])

    Args:
        peaks: (C,), largest magnitude of each channel, M.
        threshold: t, above 0.
    """
    return (peaks / threshold).clamp(min=1.0)


@dataclass(frozen=True, kw_only=True)
class _Choice:
    """A shift and a scale, and what they make of the error."""

    shift: Tensor | None
    scales: Tensor
    threshold: float
    error: float


@REWRITES.register_module()
class ChannelShiftScale:
    """Shift and scale the channels of LayerNorms for their readers, exactly.

    Applies to every LayerNorm that only linear layers, convolutions and
    nn.MultiheadAttention read, also through windows and other layouts. They
    are found by watching the float model run. The error is measured with
    the recipe's own bits. Nothing is added at run time.

    Where a module pads zeros between the norm and its readers, as windows
    do, it pads ``-z / s`` instead. Where a convolution pads inside, or
    channels don't come last, only the scale is exact: the shift is left out,
    with the reason in the report.

    Args:
        shift: Whether to subtract the channels' midpoints.
        scale: Whether to narrow wide channels.
        steps: Thresholds that are tried.
        limit: Largest scale.
        patterns: Names of the norms, as in a QConfig; None is all.
        tolerance: Largest relative change of a reader's output.
    """

    def __init__(
        self,
        *,
        shift: bool = True,
        scale: bool = True,
        steps: int = 12,
        limit: float = 100.0,
        patterns: Sequence[str] | None = None,
        tolerance: float = TOLERANCE,
    ) -> None:
        self.shift = Flag().read(shift, name='shift')
        self.scale = Flag().read(scale, name='scale')
        self.steps = Whole(low=2, high=1000).read(steps, name='steps')
        self.limit = Number(low=1, high=1e6).read(limit, name='limit')
        self.patterns = PATTERNS.read(patterns, name='patterns')
        self.tolerance = TOLERANCE_RULE.read(tolerance, name='tolerance')

    def __call__(
        self, model: nn.Module, stats: CalibrationStats
    ) -> RewriteReport:
        """Rewrite a float model in place.

        Raises:
            ValueError: If there is no calibration data, an activation is not
                finite, or a pattern matches no norm.
        """
        if not stats.batches:
            raise ValueError(
                'calibration set is empty: give at least one batch'
            )
        groups = self._chosen(_common(_find(model, stats)))
        readers = [reader for group in groups for reader in group.readers]
        samples = collect_inputs(model, readers, stats) if readers else {}
        schemes = layer_schemes(model, stats)
        plans = []
        paddings = Paddings(model, groups if self.shift else ())
        for group in groups:
            errors = [
                ReaderError(
                    reader=reader, sample=samples[reader.label], scheme=scheme
                )
                for reader in group.readers
                if reader.label in samples
                and (scheme := schemes(reader.name)) is not None
            ]
            plans.append(self._plan(group, errors, paddings))
        apply_layer_edits(model, plans, stats, tolerance=self.tolerance)
        return RewriteReport(
            rewrite=type(self).__name__,
            settings={
                'shift': self.shift,
                'scale': self.scale,
                'steps': self.steps,
                'limit': self.limit,
                'patterns': None
                if self.patterns is None
                else list(self.patterns),
            },
            entries=[outcome(plan) for plan in plans],
            structure=paddings.settle(),
        )

    @classmethod
    def replay(cls, model: nn.Module, structure: Mapping[str, Any]) -> None:
        """Let a file's modules pad their values; see ``StructuralRewrite``."""
        replay_paddings(model, structure)

    def _chosen(self, groups: Sequence[NormGroup]) -> list[NormGroup]:
        if self.patterns is None:
            return list(groups)
        check_all_used(
            self.patterns,
            [group.name for group in groups],
            argument='ChannelShiftScale.patterns',
        )
        return [
            group
            for group in groups
            if any(matches(group.name, pattern) for pattern in self.patterns)
        ]

    def _plan(
        self,
        group: NormGroup,
        errors: Sequence[ReaderError],
        paddings: Paddings,
    ) -> LayerEdit:
        """Choose shift and scale of a group, without writing anything."""
        plan = _plan_of(group)
        entry = plan.entry
        if not errors:
            entry.status = 'skipped'
            entry.reason = 'none of its readers is quantized'
            return plan
        low, high = _range(errors)
        before = _total(errors, torch.ones_like(low), None)
        entry.details['error_before'] = before
        if self.shift and group.obstacle:
            entry.details['no_shift'] = group.obstacle
        choices = [
            choice
            for choice in self._choices(group, errors, low, high)
            if choice.error < before
        ]
        if not choices:
            entry.reason = 'no shift or scale lowers the error of its readers'
            return plan
        best = min(choices, key=lambda choice: choice.error)
        _fill(plan, group, best, paddings)
        unshifted = [one for one in choices if one.shift is None]
        if best.shift is not None and unshifted:
            plan.fallback = _plan_of(group)
            plan.fallback.entry.details |= {
                'error_before': before,
                'no_shift': 'it changed an output',
            }
            best = min(unshifted, key=lambda choice: choice.error)
            _fill(plan.fallback, group, best, paddings)
        return plan

    def _choices(
        self,
        group: NormGroup,
        errors: Sequence[ReaderError],
        low: Tensor,
        high: Tensor,
    ) -> list[_Choice]:
        """Return every candidate with its error."""
        shifts: list[Tensor | None] = [None]
        if self.shift and not group.obstacle:
            shifts.append((low + high) / 2)
        found = []
        for shift in shifts:
            center = torch.zeros_like(low) if shift is None else shift
            peaks = torch.maximum((low - center).abs(), (high - center).abs())
            for threshold in self._thresholds(peaks):
                scales = threshold_scales(peaks, threshold)
                scales = scales.clamp(max=self.limit)
                found.append(
                    _Choice(
                        shift=shift,
                        scales=scales,
                        threshold=threshold,
                        error=_total(errors, scales, shift),
                    )
                )
        return found

    def _thresholds(self, peaks: Tensor) -> list[float]:
        """From the widest channel down to the narrowest that is not dead.

        The published search ends at 1.0, a magnitude of language models.
        """
        live = peaks[peaks > 0]
        if not live.numel():
            return []
        top, end = float(live.max()), float(live.min())
        end = max(end, top / self.limit)
        if not self.scale or end == top:
            return [top]
        ratios = torch.linspace(0, 1, self.steps, dtype=torch.float64)
        return [float(top * (end / top) ** ratio) for ratio in ratios]


def _plan_of(group: NormGroup) -> LayerEdit:
    """Return a plan that changes nothing."""
    return LayerEdit(
        entry=RewriteEntry(
            name=', '.join(reader.label for reader in group.readers),
            part='input',
            status='unchanged',
            details={'giver': group.name, 'operations_per_element': 0},
        ),
        readers={reader.name: reader.module for reader in group.readers},
    )


def _fill(
    plan: LayerEdit, group: NormGroup, choice: _Choice, paddings: Paddings
) -> None:
    """Enter a choice's edits and what the report says about it."""
    plan.edits = _edits(group, choice)
    plan.edits += paddings.edits(
        group.name, scales=choice.scales, shift=choice.shift
    )
    plan.entry.details |= {
        'error_after': choice.error,
        'threshold': choice.threshold,
        'scales': [float(choice.scales.min()), float(choice.scales.max())],
        'shifted': choice.shift is not None,
    }


def _range(errors: Sequence[ReaderError]) -> tuple[Tensor, Tensor]:
    """Return lowest and highest value of each channel, (C,) float64."""
    samples = [one.sample for one in errors]
    low = torch.stack([sample.min_val for sample in samples]).amin(dim=0)
    high = torch.stack([sample.max_val for sample in samples]).amax(dim=0)
    return low.double(), high.double()


def _total(
    errors: Sequence[ReaderError], scales: Tensor, shift: Tensor | None
) -> float:
    """Return the mean relative error of all readers."""
    return sum(one.error(scales, shift) for one in errors) / len(errors)


def _find(model: nn.Module, stats: CalibrationStats) -> list[NormGroup]:
    with calibration_mode(model), open_attention():
        return find_norm_groups(
            model, lambda: stats.forward(model, stats.batches[0])
        )


def _common(groups: Sequence[NormGroup]) -> list[NormGroup]:
    """Keep the groups that every rank found, as all must edit equally."""
    own = [
        (
            group.name,
            group.obstacle,
            *group.padders,
            *(one.label for one in group.readers),
        )
        for group in groups
    ]
    ranks = gather(own)
    return [
        group
        for group, names in zip(groups, own, strict=True)
        if all(names in rank for rank in ranks)
    ]


def _edits(group: NormGroup, choice: _Choice) -> list[RowEdit]:
    """Fold a shift and scales into the norm and its readers."""
    norm, scales, shift = group.norm, choice.scales, choice.shift
    gamma = norm.weight.detach()
    beta = None if norm.bias is None else norm.bias.detach()
    parts = folded_norm(gamma, beta, scales=scales, shift=shift)
    edits = [RowEdit.to(gamma, parts[0])]
    if beta is not None and parts[1] is not None:
        edits.append(RowEdit.to(beta, parts[1]))
    for reader in group.readers:
        weight, bias = reader.weight, reader.bias
        columns = reader.by_column(scales)
        constant = None if shift is None else reader.by_column(shift)
        new, returned = folded_reader(weight, scales=columns, shift=constant)
        edits.append(RowEdit.to(weight, new))
        if bias is not None and returned is not None:
            edits.append(RowEdit.to(bias, bias.double() + returned))
    return edits


def folded_norm(
    gamma: Tensor,
    beta: Tensor | None,
    *,
    scales: Tensor,
    shift: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return ``gamma / s`` and ``(beta - z) / s``, float64.

    Args:
        gamma: (C,), weight of the norm.
        beta: (C,), its bias; None without one.
        scales: (C,), s.
        shift: (C,), z; None is 0.
    """
    scales = scales.to(gamma.device).double()
    if beta is None:
        return gamma.double() / scales, None
    center = 0.0 if shift is None else shift.to(gamma.device).double()
    return gamma.double() / scales, (beta.double() - center) / scales


def folded_reader(
    weight: Tensor, *, scales: Tensor, shift: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return ``W s`` and ``W z``, which its bias gains, float64.

    A kernel adds z at each of its taps, so W z sums over them.

    Args:
        weight: (O, C / groups, ...), W.
        scales: s, as a factor that broadcasts to W.
        shift: z, likewise; None is 0.
    """
    weight = weight.double()
    new = weight * scales.to(weight.device).double()
    if shift is None:
        return new, None
    returned = weight * shift.to(weight.device).double()
    return new, returned.flatten(1).sum(dim=1)
