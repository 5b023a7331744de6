"""Sensitivities in words: the tensors that cost most, and the cure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from taskptq.modules.conv import is_depthwise

if TYPE_CHECKING:
    from taskptq.analysis.sensitivity.record import (
        PointSensitivity,
        SensitivityReport,
    )

__all__ = ['cure_of', 'cure_of_input', 'describe', 'sentences_of']

# A tensor is named if it costs at least this share of the loss.
WORTH_NAMING = 0.05
# Peaks beyond this many standard deviations are worth a word: of a normal
# distribution, a million values reach 5.
NOTABLE_PEAK = 12.0
# A role that gives back this share of what the best one does is as good.
NEARLY = 0.95
PER_CHANNEL = 'activation=dict(per_channel=True)'
WORDS = {
    'weight': 'weight',
    'activation': 'input',
    'query': 'query',
    'key': 'key',
    'value': 'value',
    'softmax': 'attention',
    'attention': 'operand',
}


def sentences_of(report: SensitivityReport, *, most: int) -> list[str]:
    """Return sentences on a report, see ``SensitivityReport.sentences``."""
    total = report.estimated
    if not report.points or total <= 0:
        return ['No tensor costs anything at its present bits.']
    found = [
        f'One tensor costs {100 * point.loss / total:.0f} % of the loss: '
        f'{describe(point)}.{_metric_text(report, point)}'
        for point in report.sorted()[:most]
        if point.loss >= WORTH_NAMING * total
    ]
    if not found:
        found = [
            f'No single tensor costs {100 * WORTH_NAMING:.0f} % of the loss: '
            f'it is spread over {len(report.points)} tensors.'
        ]
    return [*found, *_role_sentences(report), *report.notes]


def _metric_text(report: SensitivityReport, point: PointSensitivity) -> str:
    """Return what the task's metric says of a point, '' if nothing."""
    if point.metric is None or report.metric_float is None:
        return ''
    if report.estimator == 'alone':
        return (
            f' Quantized alone, it takes {report.metric} from '
            f'{report.metric_float:.3g} to {point.metric:.3g}.'
        )
    return (
        f' Left float alone, it takes {report.metric} from '
        f'{report.metric_quant:.3g} to {point.metric:.3g} (float: '
        f'{report.metric_float:.3g}).'
    )


def describe(point: PointSensitivity) -> str:
    """Return which tensor a point is, how it looks, and the cure.

    >>> from taskptq.analysis.sensitivity.record import PointSensitivity
    >>> print(describe(PointSensitivity(
    ...     name='a.input_quantizer', layer='a', point='activation',
    ...     role='depthwise input', num_bits=8, macs=1, elements=1,
    ...     sqnr_db=5.0, peak_to_std=46.0, codes_used=0.1,
    ...     effective_bits=2.3, losses={'8': 0.1})))
    input of a; its peak is 46 standard deviations; 2.3 of 8 bits are
    effective; cure: activation=dict(per_channel=True)
    """
    parts = [f'{WORDS[point.point]} of {point.layer}']
    if point.peak_to_std >= NOTABLE_PEAK and point.point != 'softmax':
        peak = f'its peak is {point.peak_to_std:.0f} standard deviations'
        parts.append(peak)
    parts += [
        f'{point.effective_bits:.1f} of {point.num_bits} bits are effective',
        f'cure: {cure_of(point)}',
    ]
    return '; '.join(parts)


def cure_of(point: PointSensitivity) -> str:
    """Return what helps a point, as a setting of the recipe."""
    if point.role == 'depthwise input' and not point.per_channel:
        return PER_CHANNEL
    if point.point == 'weight':
        return 'a recipe that optimizes the rounding of weights, such as _gptq'
    return _override(point.layer, point.point, num_bits=point.num_bits)


def cure_of_input(
    name: str, layer: nn.Module | None, *, point: str, per_channel: bool
) -> str:
    """Return what helps an activation, as a setting of the recipe.

    Args:
        name: Qualified name of its layer.
        layer: The layer.
        point: See ``record.POINTS``.
        per_channel: Whether each channel has its own scale.
    """
    if layer is not None and is_depthwise(layer) and not per_channel:
        return PER_CHANNEL
    return _override(name, point, num_bits=8)


def _override(layer: str, point: str, *, num_bits: int) -> str:
    """Return an override with the next higher bits that runtimes know."""
    more = 8 if num_bits < 8 else 16
    setting = f'{point}=dict(num_bits={more})'
    return f"overrides=[dict(pattern='{layer}', {setting})]"


def _role_sentences(report: SensitivityReport) -> list[str]:
    """Return what the most rewarding role would give back."""
    if not report.roles or report.total <= 0:
        return []
    back = {r.role: 1 - r.others / report.total for r in report.roles}
    most = max(back.values())
    if most < WORTH_NAMING:
        return []
    # The cheapest of those that give back about as much.
    best = min(
        (r for r in report.roles if back[r.role] >= NEARLY * most),
        key=lambda role: role.macs,
    )
    return [
        f'Left float, all {best.num_points} tensors of role {best.role!r} '
        f'would give back {100 * back[best.role]:.0f} % of the loss.'
    ]
