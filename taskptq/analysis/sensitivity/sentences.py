"""Sensitivities in words: the tensors that cost most, and the cure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from taskptq.analysis.sensitivity.record import (
        PointSensitivity,
        SensitivityReport,
    )

__all__ = ['cure_of', 'describe', 'sentences_of']

# A tensor is named if it costs at least this share of the loss.
WORTH_NAMING = 0.05
# Peaks beyond this many standard deviations are worth a word: of a normal
# distribution, a million values reach 5.
NOTABLE_PEAK = 12.0
WORDS = {
    'weight': 'weight',
    'activation': 'input',
    'query': 'query',
    'key': 'key',
    'value': 'value',
    'softmax': 'attention',
}


def sentences_of(report: SensitivityReport, *, most: int) -> list[str]:
    """Return sentences on a report, see ``SensitivityReport.sentences``."""
    total = report.estimated
    if not report.points or total <= 0:
        return ['No tensor costs anything at its present bits.']
    found = []
    for point in report.sorted()[:most]:
        share = point.loss / total
        if share >= WORTH_NAMING:
            found.append(f'{_share_text(share)}: {describe(point)}.')
    if not found:
        found.append(
            'No single tensor costs 5 % of the loss: it is spread over '
            f'{len(report.points)} tensors.'
        )
    return [*found, *_role_sentences(report), *report.notes]


def describe(point: PointSensitivity) -> str:
    """Return which tensor a point is, how it looks, and the cure.

    >>> from taskptq.analysis.sensitivity.record import PointSensitivity
    >>> describe(PointSensitivity(
    ...     name='a.input_quantizer', layer='a', point='activation',
    ...     role='depthwise input', num_bits=8, macs=1, elements=1,
    ...     sqnr_db=5.0, peak_to_std=46.0, codes_used=0.1,
    ...     effective_bits=2.3, losses={'8': 0.1}))
    'input of a; its peak is 46 standard deviations; 2.3 of 8 bits serve \
the bulk of its values; cure: activation=dict(per_channel=True)'
    """
    parts = [f'{WORDS[point.point]} of {point.layer}']
    if point.peak_to_std >= NOTABLE_PEAK and point.point != 'softmax':
        parts.append(f'its peak is {point.peak_to_std:.0f} standard deviations')
        parts.append(
            f'{point.effective_bits:.1f} of {point.num_bits} bits serve the '
            'bulk of its values'
        )
    parts.append(f'cure: {cure_of(point)}')
    return '; '.join(parts)


def cure_of(point: PointSensitivity) -> str:
    """Return what helps a point, as a setting of the recipe."""
    if point.role == 'depthwise input' and not point.per_channel:
        return 'activation=dict(per_channel=True)'
    if point.point == 'weight' and point.num_bits < 8:
        return 'learned rounding, e.g. a recipe that ends in _qdrop or _gptq'
    name = 'weight' if point.point == 'weight' else point.point
    if point.num_bits < 8:
        return f"overrides=[dict(pattern='{point.layer}', {name}=dict(num_bits=8))]"
    return f"overrides=[dict(pattern='{point.layer}', {name}=False)]"


def _share_text(share: float) -> str:
    """Return a share of the loss as the start of a sentence.

    >>> _share_text(0.34)
    'One tensor costs 34 % of the loss'
    """
    return f'One tensor costs {100 * share:.0f} % of the loss'


def _role_sentences(report: SensitivityReport) -> list[str]:
    """Return what the costliest role could give back."""
    if not report.roles or report.total <= 0:
        return []
    best = min(report.roles, key=lambda role: role.others)
    back = 1 - best.others / report.total
    if back < WORTH_NAMING:
        return []
    return [
        f'Left float, all {best.num_points} tensors of role {best.role!r} '
        f'would give back {100 * back:.0f} % of the loss.'
    ]
