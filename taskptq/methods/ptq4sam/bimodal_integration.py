"""Bimodal integration of keys, from PTQ4SAM.

Lv et al., PTQ4SAM, CVPR 2024, section 3.2. Keys of SAM's token-to-image
attentions have two peaks, symmetric around zero, and each channel lies in one
of them. With a sign s_c per channel, (Q s)(K s)^T = Q K^T. Taking the sign of
each channel's mean leaves the keys one peak and half the range.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from taskptq.methods.rewriting.statistics import (
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
    skipped_entries,
)
from taskptq.methods.rewriting.views import AttentionView, select_views
from taskptq.registry import REWRITES

__all__ = ['TOKEN_TO_IMAGE', 'BimodalIntegration', 'channel_signs']

# The published scope: the mask decoder's attentions from tokens to the image.
TOKEN_TO_IMAGE = ('*cross_attn_token_to_image', '*final_attn_token_to_image')


def channel_signs(mean: Tensor) -> Tensor:
    """Return the sign of each channel's mean, (C,), +1 or -1; +1 at 0."""
    return torch.where(mean < 0, -1.0, 1.0)


@REWRITES.register_module()
class BimodalIntegration:
    """Flip channels of queries and keys where the keys have two peaks.

    The keys of one calibration sample (the first batch in which the attention
    runs) decide: their density at 128 points must have exactly two peaks of
    at least 0.01 times its sum, 32 points apart. With more than 2^17 keys a
    fixed random sample of tokens is used, with the whole tensor's bandwidth.
    The rows of weight and bias of both projections are multiplied by the
    sign of the channel's mean.

    Args:
        patterns: Names of the attentions, as in a QConfig; None is all.
        tolerance: Largest relative change of an attention's output.
        verify_batches: Batches to verify each attention on.
    """

    def __init__(
        self,
        *,
        patterns: Sequence[str] | None = TOKEN_TO_IMAGE,
        tolerance: float = TOLERANCE,
        verify_batches: int = 1,
    ) -> None:
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
            ValueError: If a pattern matches no attention, or there is no
                calibration data.
        """
        views, reasons = select_views(
            model,
            patterns=self.patterns,
            argument='BimodalIntegration.patterns',
        )
        found = collect_statistics(
            model,
            views,
            stats.batches,
            forward=stats.forward,
            parts=['key'],
            one_batch=True,
        )
        proposals = [
            _propose(view, found.get(view.name, {}).get('key'))
            for view in views
        ]
        apply_proposals(
            model,
            proposals,
            stats,
            tolerance=self.tolerance,
            verify_batches=self.verify_batches,
        )
        settings = {
            'patterns': None if self.patterns is None else list(self.patterns)
        }
        return RewriteReport(
            rewrite=type(self).__name__,
            settings=settings,
            entries=[
                *skipped_entries(reasons, part='query and key'),
                *(proposal.entry for proposal in proposals),
            ],
        )


def _propose(view: AttentionView, keys: ChannelStatistics | None) -> Proposal:
    """Decide on one attention and plan its edits."""
    entry = RewriteEntry(
        name=view.name, part='query and key', status='skipped'
    )
    proposal = Proposal(view=view, entry=entry)
    if keys is None:
        entry.reason = 'it never ran on the calibration data'
        return proposal
    peaks = keys.peaks()
    entry.details = {'peaks': peaks.to_dict()}
    if not peaks.bimodal:
        entry.status = 'unchanged'
        entry.reason = f'its keys have {len(peaks.positions)} peaks, not 2'
        return proposal
    obstacle = sign_obstacle(view)
    if obstacle is not None:
        entry.reason = obstacle
        return proposal
    signs = channel_signs(keys.mean)
    low = torch.where(signs > 0, keys.min_val, -keys.max_val)
    high = torch.where(signs > 0, keys.max_val, -keys.min_val)
    entry.details |= {
        'num_positive': int((signs > 0).sum()),
        'num_negative': int((signs < 0).sum()),
        'range_before': [peaks.low, peaks.high],
        'range_after': [float(low.min()), float(high.max())],
    }
    proposal.edits = sign_edits(view, signs)
    return proposal


def sign_obstacle(view: AttentionView) -> str | None:
    """Return why channels cannot be flipped, or None."""
    if view.query_positions:
        return (
            'relative positions are computed from the query by one table '
            'for all heads, which would need a separate sign per head'
        )
    if view.key_position is not None:
        return 'its positions are projected separately and would not flip'
    if view.extra_keys:
        return (
            'a learned or zero token joins the keys after their projection '
            'and would not be flipped with them'
        )
    return None


def sign_edits(view: AttentionView, signs: Tensor) -> list[RowEdit]:
    """Multiply the rows of query and key projection by signs.

    Args:
        view: Attention.
        signs: (C,), +1 or -1.
    """
    edits = []
    for projection in (view.query, view.key):
        signs = signs.to(projection.weight)
        edits.append(
            RowEdit.to(projection.weight, projection.weight * signs[:, None])
        )
        if projection.bias is not None:
            edits.append(RowEdit.to(projection.bias, projection.bias * signs))
    return edits
