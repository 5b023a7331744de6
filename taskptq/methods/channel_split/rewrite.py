"""Split outlier channels into equal parts, exactly.

``f(x) = sum_T f(x / T)`` for ReLUs and whatever else commutes with a positive
factor: a channel T times as large as the others becomes T channels of common
size, which the readers add up again (the disassembly of Liu et al., 'QLLM',
ICLR 2024; before it Zhao et al., 'Improving Neural Network Quantization
without Retraining using Outlier Channel Splitting', ICML 2019). Unlike a
scale it leaves the ranges of the weights, at the price of more channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.calibration.calibrate import calibration_mode
from taskptq.core.settings import Number
from taskptq.methods.channel_split.copies import (
    MAX_COPIES,
    Copies,
    apply_copies,
    is_dense,
    put_back,
    read_copies,
    tensors_of,
)
from taskptq.methods.equalization.scale_groups import (
    LayerGroup,
    find_layer_groups,
)
from taskptq.methods.rewriting.layer_edits import (
    compare_outputs,
    layer_outputs,
)
from taskptq.methods.rewriting.reader_error import ReaderError, layer_schemes
from taskptq.methods.rewriting.readers import Reader, collect_inputs
from taskptq.methods.rewriting.statistics import gather
from taskptq.methods.rewriting.verified_rewrite import (
    PATTERNS,
    TOLERANCE_RULE,
    CalibrationStats,
    RewriteEntry,
    RewriteReport,
)
from taskptq.prepare.patterns import check_all_used, matches
from taskptq.registry import REWRITES

__all__ = ['ChannelSplit', 'copies_for']

TOLERANCE = 1e-4
# Sizes of the parts that are tried.
STEPS = 16


def copies_for(peaks: Tensor, part: float) -> Tensor:
    """Return the copies of each channel, ``ceil(max|x| / part)``.

    >>> copies_for(torch.tensor([8.0, 1, 3, 0.5]), 3.0).tolist()
    [3, 1, 1, 1]

    Args:
        peaks: (C,), largest magnitude of each channel.
        part: Largest magnitude of a copy, above 0.
    """
    # A quotient of 3.0000001 is 3.
    return (peaks.double() / part - 1e-6).ceil().clamp(min=1).long()


@dataclass(kw_only=True)
class _Plan:
    """Planned copies of one group."""

    group: LayerGroup
    copies: Copies
    entry: RewriteEntry


@REWRITES.register_module()
class ChannelSplit:
    """Split channels far larger than the others into equal parts, exactly.

    Between dense layers that only ReLUs (and a BatchNorm) separate. Both
    layers compute more: the report has the added multiply-accumulates. A
    group stays as it is if its readers' error, at the recipe's bits, falls by
    less than ``least_gain``.

    Args:
        max_extra: Most channels added, relative to those of a layer.
        least_gain: Least factor by which the error has to fall.
        least_error: Groups whose relative error power is below this stay.
        patterns: Names of the layers that read the channels, as in a
            QConfig; None is all.
        tolerance: Largest relative change of a layer's output.
    """

    def __init__(
        self,
        *,
        max_extra: float = 0.25,
        least_gain: float = 1.5,
        least_error: float = 1e-3,
        patterns: Sequence[str] | None = None,
        tolerance: float = TOLERANCE,
    ) -> None:
        self.max_extra = Number(above=0, high=1).read(
            max_extra, name='max_extra'
        )
        self.least_gain = Number(low=1, high=1e6).read(
            least_gain, name='least_gain'
        )
        self.least_error = Number(low=0, high=1).read(
            least_error, name='least_error'
        )
        self.patterns = PATTERNS.read(patterns, name='patterns')
        self.tolerance = TOLERANCE_RULE.read(tolerance, name='tolerance')

    def __call__(
        self, model: nn.Module, stats: CalibrationStats
    ) -> RewriteReport:
        """Rewrite a float model in place.

        Raises:
            ValueError: If there is no calibration data, an activation is not
                finite, or a pattern matches no layer.
        """
        if not stats.batches:
            raise ValueError(
                'calibration set is empty: give at least one batch'
            )
        with calibration_mode(model):
            groups = self._groups(model, stats)
        errors = _errors(model, groups, stats)
        entries, plans = [], []
        for group in groups:
            entry, counts = self._choose(group, errors[group.name])
            entries.append(entry)
            if counts is not None:
                plans.append(
                    _Plan(
                        group=group,
                        copies=_copies(group, counts),
                        entry=entry,
                    )
                )
        prices = _prices(model, plans, stats)
        for plan in plans:
            plan.entry.details['extra_macs'] = prices[plan.copies]
        standing = _apply(model, plans, stats, tolerance=self.tolerance)
        return RewriteReport(
            rewrite=type(self).__name__,
            settings={
                'max_extra': self.max_extra,
                'least_gain': self.least_gain,
                'least_error': self.least_error,
                'patterns': None
                if self.patterns is None
                else list(self.patterns),
            },
            entries=entries,
            structure={'copies': [plan.copies.to_dict() for plan in standing]}
            if standing
            else {},
        )

    @classmethod
    def replay(cls, model: nn.Module, structure: Mapping[str, Any]) -> None:
        """Give the layers of a file their sizes; see ``StructuralRewrite``.

        Raises:
            ValueError: If the copies do not fit the model.
        """
        found = structure.get('copies')
        if not isinstance(found, list | tuple):
            raise ValueError('copies of channels are not a list')
        if len(found) > sum(1 for _ in model.modules()):
            raise ValueError('more copies of channels than layers')
        for plain in found:
            apply_copies(model, read_copies(model, plain))

    def _groups(
        self, model: nn.Module, stats: CalibrationStats
    ) -> list[LayerGroup]:
        found = find_layer_groups(
            model, lambda: stats.forward(model, stats.batches[0])
        )
        groups = [group for group in found if _can_split(group)]
        own = [_labels(group) for group in groups]
        ranks = gather(own)
        groups = [
            group
            for group in groups
            if all(_labels(group) in rank for rank in ranks)
        ]
        if self.patterns is None:
            return groups
        names = [name for group in groups for name, _ in group.readers]
        check_all_used(self.patterns, names, argument='ChannelSplit.patterns')
        return [
            group
            for group in groups
            if any(
                matches(name, pattern)
                for name, _ in group.readers
                for pattern in self.patterns
            )
        ]

    def _choose(
        self, group: LayerGroup, errors: Sequence[ReaderError]
    ) -> tuple[RewriteEntry, Tensor | None]:
        """Search the copies of one group; None if it had better stay."""
        entry = RewriteEntry(
            name=', '.join(name for name, _ in group.readers),
            part='input',
            status='unchanged',
            details={'giver': group.name},
        )
        if not errors:
            entry.reason = 'none of its readers is quantized'
            return entry, None
        peaks = torch.stack([one.sample.peaks for one in errors]).amax(dim=0)
        best = before = _total(errors, torch.ones_like(peaks))
        entry.details['error_before'] = before
        if before < self.least_error:
            entry.reason = f'its error is below {self.least_error:g}'
            return entry, None
        chosen = None
        for counts in self._candidates(peaks):
            error = _total(errors, counts)
            if error < best:
                best, chosen = error, counts
        entry.details['error_after'] = best
        if chosen is None or before < self.least_gain * best:
            entry.reason = (
                f'its error falls by less than a factor of {self.least_gain:g}'
            )
            return entry, None
        entry.details |= {
            'channels': len(peaks),
            'extra_channels': int(chosen.sum()) - len(peaks),
            'max_copies': int(chosen.max()),
        }
        return entry, chosen

    def _candidates(self, peaks: Tensor) -> list[Tensor]:
        """Return distinct copies within the budget, the fewest first."""
        top = float(peaks.max())
        found: dict[tuple[int, ...], Tensor] = {}
        for step in range(1, STEPS + 1):
            part = top * MAX_COPIES ** (-step / STEPS)
            if top <= 0:
                break
            counts = copies_for(peaks, part)
            extra = int(counts.sum()) - len(peaks)
            if extra > self.max_extra * len(peaks):
                break
            found[tuple(counts.tolist())] = counts
        return list(found.values())


def _labels(group: LayerGroup) -> tuple[str, ...]:
    return (group.name, group.source, *(name for name, _ in group.readers))


def _can_split(group: LayerGroup) -> bool:
    dense = all(is_dense(layer) for _, layer in group.readers)
    if isinstance(group.giver, nn.BatchNorm2d):
        return dense and is_dense(group.source_layer)
    return dense and is_dense(group.giver)


def _copies(group: LayerGroup, counts: Tensor) -> Copies:
    norm = isinstance(group.giver, nn.BatchNorm2d)
    return Copies(
        giver=group.source if norm else group.name,
        norm=group.name if norm else '',
        readers=tuple(name for name, _ in group.readers),
        counts=tuple(counts.tolist()),
    )


def _errors(
    model: nn.Module, groups: Sequence[LayerGroup], stats: CalibrationStats
) -> dict[str, list[ReaderError]]:
    """Return the errors of each group's quantized readers."""
    schemes = layer_schemes(model, stats)
    readers = {
        name: Reader(name=name, module=layer)
        for group in groups
        for name, layer in group.readers
        if schemes(name) is not None
    }
    samples = collect_inputs(model, list(readers.values()), stats)
    return {
        group.name: [
            ReaderError(
                reader=readers[name],
                sample=samples[name],
                scheme=scheme,
                gains=group.gains.get(name),
            )
            for name, _ in group.readers
            if name in samples and (scheme := schemes(name)) is not None
        ]
        for group in groups
    }


def _total(errors: Sequence[ReaderError], counts: Tensor) -> float:
    return sum(one.split_error(counts) for one in errors) / len(errors)


def _prices(
    model: nn.Module, plans: Sequence[_Plan], stats: CalibrationStats
) -> dict[Copies, int]:
    """Return the multiply-accumulates that copies add on the first batch."""
    names = {
        name for plan in plans for name in (plan.copies.giver, *_names(plan))
    }
    layers = {name: model.get_submodule(name) for name in sorted(names)}
    if not layers:
        return {}
    outputs = layer_outputs(model, layers, stats)
    macs: dict[str, int] = {}
    for name, found in outputs.items():
        weight = layers[name].weight
        assert isinstance(weight, Tensor)
        size = sum(output.numel() for output in found)
        macs[name] = size * weight[0].numel()
    prices = {}
    for plan in plans:
        counts = plan.copies.counts
        extra = (sum(counts) - len(counts)) / len(counts)
        total = sum(macs[name] for name in (plan.copies.giver, *_names(plan)))
        prices[plan.copies] = round(extra * total)
    return prices


def _names(plan: _Plan) -> tuple[str, ...]:
    return plan.copies.readers


def _apply(
    model: nn.Module,
    plans: Sequence[_Plan],
    stats: CalibrationStats,
    *,
    tolerance: float,
) -> list[_Plan]:
    """Copy channels; take those back whose readers' outputs change."""
    standing = list(plans)
    if not standing:
        return []
    readers = {name: layer for p in plans for name, layer in p.group.readers}
    expected = layer_outputs(model, readers, stats)
    before = tensors_of(model, [plan.copies for plan in plans])
    while standing:
        for plan in standing:
            apply_copies(model, plan.copies)
        errors = compare_outputs(model, readers, stats, expected)
        failed = []
        for plan in standing:
            error = max(errors.get(name, 0.0) for name in _names(plan))
            plan.entry.max_relative_error = error
            plan.entry.status = 'applied'
            if not error <= tolerance:
                failed.append(plan)
                plan.entry.status = 'undone'
                plan.entry.reason = (
                    f'its output changed by {error:.2g}, more than the '
                    f'tolerance of {tolerance:g}'
                )
        if not failed:
            break
        put_back(model, before)
        standing = [plan for plan in standing if plan not in failed]
    return standing
