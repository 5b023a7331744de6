"""Shift key channels so that the keys of any model become bimodal.

Keys of the token-to-image attentions of SAM-B and SAM-L naturally have two
peaks: each channel has a large mean of either sign. Keys of small models have
one peak. Softmax over the keys ignores a constant vector added to every key,
so adding +-c_j to the bias of channel j gives a small model the key
distribution of a large one without changing its float predictions. This is a
test bed for methods that handle it, not something to deploy.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from taskptq.core.settings import SEED, Number
from taskptq.methods.centering.centering import key_edits
from taskptq.methods.ptq4sam.bimodal_integration import TOKEN_TO_IMAGE
from taskptq.methods.rewriting.verified_rewrite import (
    PATTERNS,
    TOLERANCE,
    TOLERANCE_RULE,
    VERIFY_BATCHES,
    CalibrationStats,
    Proposal,
    RewriteEntry,
    RewriteReport,
    apply_proposals,
    key_shift_obstacle,
    skipped_entries,
)
from taskptq.methods.rewriting.views import AttentionView, select_views
from taskptq.registry import REWRITES

__all__ = ['KeyShift', 'draw_shift']


def draw_shift(
    num_channels: int, *, c: float, spread: float, seed: int, name: str
) -> Tensor:
    """Draw +-c (1 + spread n_j), n_j normally distributed.

    Args:
        num_channels: Channels, C. Half of them (rounded up) are positive.
        c: Magnitude, in the units of the keys.
        spread: Standard deviation of the magnitudes, relative to ``c``.
        seed: Seed.
        name: Name of the attention; each has its own shift.

    Returns:
        (C,), float64.
    """
    generator = torch.Generator().manual_seed(seed + zlib.crc32(name.encode()))
    order = torch.randperm(num_channels, generator=generator)
    signs = torch.where(order < (num_channels + 1) // 2, 1.0, -1.0)
    noise = torch.randn(num_channels, generator=generator, dtype=torch.float64)
    return signs * c * (1 + spread * noise)


@REWRITES.register_module()
class KeyShift:
    """Give keys two peaks by adding +-c_j to each channel j.

    Args:
        c: Magnitude of the constants, in the units of the keys; several
            times the keys' own deviation gives two peaks.
        spread: Relative deviation of the magnitudes among channels. With 0
            they are equal, the case in which flipping signs works.
        seed: Seed of signs and magnitudes.
        patterns: Names of the attentions, as in a QConfig; None is all.
        tolerance: Largest relative change of an attention's output.
        verify_batches: Batches to verify each attention on.
    """

    def __init__(
        self,
        *,
        c: float = 4.0,
        spread: float = 0.3,
        seed: int = 0,
        patterns: Sequence[str] | None = TOKEN_TO_IMAGE,
        tolerance: float = TOLERANCE,
        verify_batches: int = 1,
    ) -> None:
        self.c = Number(low=-1e6, high=1e6).read(c, name='c')
        self.spread = Number(low=0, high=10).read(spread, name='spread')
        self.seed = SEED.read(seed, name='seed')
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
            ValueError: If a pattern matches no attention.
        """
        views, reasons = select_views(
            model, patterns=self.patterns, argument='KeyShift.patterns'
        )
        proposals = [self._propose(view) for view in views]
        apply_proposals(
            model,
            proposals,
            stats,
            tolerance=self.tolerance,
            verify_batches=self.verify_batches,
        )
        settings = {
            'c': self.c,
            'spread': self.spread,
            'seed': self.seed,
            'patterns': None if self.patterns is None else list(self.patterns),
        }
        return RewriteReport(
            rewrite=type(self).__name__,
            settings=settings,
            entries=[
                *skipped_entries(reasons, part='key'),
                *(proposal.entry for proposal in proposals),
            ],
        )

    def _propose(self, view: AttentionView) -> Proposal:
        """Plan the shift of one attention; without edits if impossible."""
        entry = RewriteEntry(name=view.name, part='key', status='skipped')
        obstacle = key_shift_obstacle(view)
        if obstacle is not None:
            entry.reason = obstacle
            return Proposal(view=view, entry=entry)
        shift = draw_shift(
            view.key.weight.shape[0],
            c=self.c,
            spread=self.spread,
            seed=self.seed,
            name=view.name,
        )
        entry.details = {'shift': shift.tolist()}
        return Proposal(view=view, entry=entry, edits=key_edits(view, shift))
