"""Centering of keys and values, folded into biases.

A softmax over the keys ignores a number added to all logits of a query.
Subtracting a vector c from every key adds -q.c to all logits of query q, so
``attn(q, K - 1 c^T) = attn(q, K)`` for every q, quantized or not. The rows of
the attention A sum to 1, so A (V - 1 c^T) = A V - 1 c^T: subtracted from the
values, c is added back in the output projection's bias.

The best constants follow from the errors of quantization. The error of
rounded keys grows with their range. With ranges of least error, not full
ranges, that is the width of the bulk around the mean, and the midpoint of the
extremes may lie far from it. A quantized softmax A_hat has the error
(A_hat - A)(V - 1 c^T). If many of its small entries fell to 0, it is about r A
with r < 1, and the error is least where A V - c is: at the mean of the
attended values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from taskptq.core.settings import Choice, Flag, refuse
from taskptq.methods.rewriting.statistics import (
    ATTENDED,
    ChannelStatistics,
    collect_statistics,
)
from taskptq.methods.rewriting.verified_rewrite import (
    PATTERNS,
    TOLERANCE,
    TOLERANCE_RULE,
    VERIFY_BATCHES,
    CalibrationStats,
    Proposal,
    RewriteEntry,
    RewriteReport,
    RowEdit,
    apply_proposals,
    key_shift_obstacle,
    skipped_entries,
)
from taskptq.methods.rewriting.views import AttentionView, select_views
from taskptq.registry import REWRITES

__all__ = [
    'AttentionCentering',
    'value_centering_report',
    'value_centering_residual',
]

KEY_CENTERS = ('mean', 'midrange')
VALUE_CENTERS = ('attended', 'mean', 'midrange')


@REWRITES.register_module()
class AttentionCentering:
    """Center the channels of keys and values at zero, exactly.

    A per-tensor range then spans the widest channel, not the centers of all
    channels, whatever their magnitudes (flipping signs, as in bimodal
    integration, needs equal ones). Nothing is added at run time. Attentions
    without the biases to fold into are skipped: a new parameter would not
    fit the structure that quantized files are restored into.

    Args:
        keys: Center the keys.
        values: Center the values. See :func:`value_centering_residual`.
        key_center: Center of each channel on the calibration data: 'mean',
            or 'midrange', the midpoint of lowest and highest value, for
            ranges that span both (MinMax).
        value_center: 'attended', the mean of the values as the queries attend
            to them, i.e. of the heads' outputs; 'mean', which counts each
            value once; or 'midrange'.
        patterns: Names of the attentions, as in a QConfig; None is all.
        tolerance: Largest relative change of an attention's output.
        verify_batches: Batches to verify each attention on.

    Raises:
        ValueError: If a center is unknown or there is nothing to center.
    """

    def __init__(
        self,
        *,
        keys: bool = True,
        values: bool = True,
        key_center: str = 'mean',
        value_center: str = 'attended',
        patterns: Sequence[str] | None = None,
        tolerance: float = TOLERANCE,
        verify_batches: int = 1,
    ) -> None:
        keys = Flag().read(keys, name='keys')
        values = Flag().read(values, name='values')
        if not (keys or values):
            raise refuse(
                'values',
                False,
                'keys and values are both False: center one of them or remove '
                'the rewrite',
            )
        self.parts = ['key', 'key_position'] * keys + ['value'] * values
        self.key_center = Choice(choices=KEY_CENTERS).read(
            key_center, name='key_center'
        )
        self.value_center = Choice(choices=VALUE_CENTERS).read(
            value_center, name='value_center'
        )
        self.patterns = PATTERNS.read(patterns, name='patterns')
        self.tolerance = TOLERANCE_RULE.read(tolerance, name='tolerance')
        self.verify_batches = VERIFY_BATCHES.read(
            verify_batches, name='verify_batches'
        )

    def __call__(
        self, model: nn.Module, stats: CalibrationStats
    ) -> RewriteReport:
        """Rewrite a float model in place.

        Raises:
            ValueError: If there is no attention, a pattern matches none, or
                there is no calibration data.
        """
        views, reasons = select_views(
            model,
            patterns=self.patterns,
            argument='AttentionCentering.patterns',
        )
        found = collect_statistics(
            model,
            views,
            stats.batches,
            forward=stats.forward,
            parts=[*self.parts, *self._more_parts()],
        )
        proposals = [
            self._propose(view, part, found.get(view.name, {}))
            for view in views
            for part in self.parts
            if view.part(part) is not None
        ]
        apply_proposals(
            model,
            proposals,
            stats,
            tolerance=self.tolerance,
            verify_batches=self.verify_batches,
        )
        return RewriteReport(
            rewrite=type(self).__name__,
            settings=self._settings(),
            entries=[
                *(
                    entry
                    for part in self.parts
                    if part != 'key_position'
                    for entry in skipped_entries(reasons, part=part)
                ),
                *(proposal.entry for proposal in proposals),
            ],
        )

    def _settings(self) -> dict[str, object]:
        return {
            'parts': list(self.parts),
            'key_center': self.key_center,
            'value_center': self.value_center,
            'patterns': None if self.patterns is None else list(self.patterns),
        }

    def _more_parts(self) -> list[str]:
        attended = 'value' in self.parts and self.value_center == ATTENDED
        return [ATTENDED] if attended else []

    def _center(
        self, part: str, found: Mapping[str, ChannelStatistics]
    ) -> Tensor:
        """Return the constant to subtract from a part, (C,) float64."""
        kind = self.value_center if part == 'value' else self.key_center
        if kind == 'midrange':
            return found[part].midrange
        return found[ATTENDED if kind == ATTENDED else part].mean

    def _propose(
        self,
        view: AttentionView,
        part: str,
        found: Mapping[str, ChannelStatistics],
    ) -> Proposal:
        """Plan one part of one attention; without edits if impossible."""
        statistics = found.get(part)
        entry = RewriteEntry(name=view.name, part=part, status='skipped')
        obstacle = (
            value_shift_obstacle(view)
            if part == 'value'
            else key_shift_obstacle(view, part)
        )
        if statistics is None:
            obstacle = 'it never ran on the calibration data'
        if obstacle is not None or statistics is None:
            entry.reason = obstacle or ''
            return Proposal(view=view, entry=entry)
        center = self._center(part, found)
        entry.details = _ranges(statistics, center)
        edits = (
            value_edits(view, -center)
            if part == 'value'
            else key_edits(view, -center, part)
        )
        return Proposal(view=view, entry=entry, edits=edits)


def _ranges(
    statistics: ChannelStatistics, center: Tensor
) -> dict[str, object]:
    """Describe the per-tensor range before and after."""
    low, high = statistics.min_val, statistics.max_val
    return {
        'range_before': [float(low.min()), float(high.max())],
        'range_after': [
            float((low - center).min()),
            float((high - center).max()),
        ],
        'max_center': float(center.abs().max()),
    }


def value_shift_obstacle(view: AttentionView) -> str | None:
    """Return why a constant cannot be added to all values, or None."""
    if view.extra_keys:
        return (
            'a learned or zero token joins the values after their projection '
            'and would not be shifted with them'
        )
    if view.value.bias is None:
        return 'the value projection has no bias to fold a shift into'
    if view.out.bias is None:
        return 'the output projection has no bias to bring the shift back'
    return None


def key_edits(
    view: AttentionView, shift: Tensor, part: str = 'key'
) -> list[RowEdit]:
    """Add ``shift`` (C,) to every token's key, or the key's position."""
    projection = view.part(part)
    assert projection is not None
    bias = projection.bias
    assert bias is not None
    return [RowEdit.to(bias, bias.double() + shift.to(bias.device))]


def value_edits(view: AttentionView, shift: Tensor) -> list[RowEdit]:
    """Add ``shift`` (C,) to every value and subtract it from the output.

    The output projection reads the heads' outputs in the order of the value
    channels, so its bias changes by -W_out shift.
    """
    bias, out_bias = view.value.bias, view.out.bias
    assert bias is not None
    assert out_bias is not None
    shift = shift.to(bias.device)
    returned = view.out.weight.double() @ shift
    return [
        RowEdit.to(bias, bias.double() + shift),
        RowEdit.to(out_bias, out_bias.double() - returned),
    ]


def value_centering_residual(attention_hat: Tensor, center: Tensor) -> Tensor:
    """Return the error that centers of values add under a quantized softmax.

    If rows of A_hat sum to r instead of 1,
    A_hat V = (A_hat (V - 1 c^T) + 1 c^T) + (r - 1) c^T. The term in brackets
    is the output with centered values, where c comes from a bias and is not
    scaled by r. The last term, returned here, occurs only without centering.
    Compared to the float output A V, the centered output has the error
    (A_hat - A)(V - 1 c^T), the uncentered one that plus the residual.

    Args:
        attention_hat: (..., N, M), quantized attention, row sums near 1.
        center: (D,), centers of the value channels of a head.

    Returns:
        (..., N, D), (row sum - 1) c.
    """
    return (attention_hat.sum(dim=-1, keepdim=True) - 1) * center


def value_centering_report(
    attention: Tensor, attention_hat: Tensor, value: Tensor, center: Tensor
) -> dict[str, float]:
    """Measure whether centering helps under one quantized softmax.

    Args:
        attention: (..., N, M), float attention.
        attention_hat: (..., N, M), quantized.
        value: (..., M, D), float or quantized values, uncentered.
        center: (D,) or broadcastable to (..., 1, D).

    Returns:
        ``row_sum_error``, the largest |row sum - 1|; and, as Frobenius norms
        relative to that of the float output: ``residual``, ``error`` without
        and ``error_centered`` with centering.
    """
    expected = attention @ value
    plain = attention_hat @ value
    residual = value_centering_residual(attention_hat, center)
    scale = torch.linalg.vector_norm(expected)

    def relative(x: Tensor) -> float:
        return float(torch.linalg.vector_norm(x) / scale)

    row_sums = attention_hat.sum(dim=-1)
    return {
        'row_sum_error': float((row_sums - 1).abs().max()),
        'residual': relative(residual),
        'error': relative(plain - expected),
        'error_centered': relative(plain - residual - expected),
    }
