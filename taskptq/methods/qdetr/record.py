"""Record of a query distillation: its images, counts and loss terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from taskptq.methods.qdetr.matching import QueryMatch

__all__ = ['DistillationRecord']

Metas = Sequence[Mapping[str, Any]]


@dataclass(kw_only=True)
class DistillationRecord:
    """Record of one network; keys are the number of a batch's first image.

    Args:
        metas: Metainfo of the images of each batch.
        teacher_heads: Outputs of another teacher on each batch.
        steps: Minibatches seen.
        images: Images seen, counted once per matched layer.
        skipped: Images without a foreground query, counted the same way.
        pairs: Matched queries.
        first_terms: Weighted terms of the first minibatch.
        last_terms: Weighted terms of the last minibatch.
    """

    metas: dict[int, Metas] = field(default_factory=dict)
    teacher_heads: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    steps: int = 0
    images: int = 0
    skipped: int = 0
    pairs: int = 0
    first_terms: dict[str, Tensor] = field(default_factory=dict)
    last_terms: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of_batches(cls, metas: Sequence[Metas]) -> DistillationRecord:
        """Make a record for the batches of a calibration set."""
        record = cls()
        first = 0
        for batch in metas:
            record.metas[first] = batch
            first += len(batch)
        return record

    def count(self, match: QueryMatch) -> None:
        """Count the matches of one layer, during steps only."""
        if not torch.is_grad_enabled():
            return
        self.images += len(match.counts)
        self.skipped += sum(count == 0 for count in match.counts)
        self.pairs += len(match)

    def note(self, terms: Mapping[str, Tensor]) -> None:
        """Record the weighted terms of one minibatch, during steps only."""
        if not torch.is_grad_enabled():
            return
        self.steps += 1
        self.last_terms = {n: term.detach() for n, term in terms.items()}
        self.first_terms = self.first_terms or self.last_terms

    def to_dict(self) -> dict[str, Any]:
        """Return plain types."""
        return {
            'steps': self.steps,
            'pairs_per_image': self.pairs / max(1, self.images),
            'images_without_pairs': self.skipped / max(1, self.images),
            'first_terms': {n: float(t) for n, t in self.first_terms.items()},
            'last_terms': {n: float(t) for n, t in self.last_terms.items()},
        }
