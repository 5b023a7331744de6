"""The report of a sparse model, by layer."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from taskptq.methods.sparsity.prunable import Prunable


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """What became of one weight.

    Args:
        name: Qualified name of the weight.
        size: Its elements.
        zeros: How many the mask sets to 0.
        error: Energy that they held, relative to the weight's:
            ``|w_removed|^2 / |w|^2``.
        limit: What acted: 'cut' for a threshold within the layer, 'dense'
            where nothing fell, 'empty' where nothing remains.
    """

    name: str
    size: int
    zeros: int
    error: float
    limit: str

    @property
    def rate(self) -> float:
        """Share of zeros."""
        return self.zeros / self.size

    @classmethod
    @torch.no_grad()
    def of(cls, prunable: Prunable, mask: Tensor) -> LayerRow:
        """Describe one weight and its mask."""
        weight = prunable.weight.double()
        zeros = mask.numel() - int(mask.sum())
        total = float(weight.square().sum())
        removed = float(weight[~mask].square().sum())
        limit = {0: 'dense', mask.numel(): 'empty'}.get(zeros, 'cut')
        return cls(
            name=prunable.name,
            size=mask.numel(),
            zeros=zeros,
            error=removed / total if total else 0.0,
            limit=limit,
        )


@dataclass(kw_only=True)
class SparsityReport:
    """Report of :func:`sparsify`.

    Args:
        config: Settings in plain types.
        layers: Prunable weights.
        dense: Other weights, and why they stay dense.
        learned: Losses and factors of learned rates.
        fallback: Why rates could not be learned.
        seconds: Wall time.
    """

    config: dict[str, Any]
    layers: list[LayerRow] = field(default_factory=list)
    dense: dict[str, str] = field(default_factory=dict)
    learned: dict[str, Any] = field(default_factory=dict)
    fallback: str = ''
    seconds: float = 0.0

    @property
    def zeros(self) -> int:
        """Zeros of all prunable weights."""
        return sum(row.zeros for row in self.layers)

    @property
    def prunable(self) -> int:
        """Elements of all prunable weights."""
        return sum(row.size for row in self.layers)

    def sentence(self) -> str:
        """Return the outcome in one sentence."""
        rate = self.zeros / max(self.prunable, 1)
        rates = [row.rate for row in self.layers]
        return (
            f'{self.zeros} of {self.prunable} prunable weights are 0 '
            f'({rate:.4%}; by layer {min(rates):.0%} to {max(rates):.0%}); '
            f'{len(self.dense)} weights stay dense'
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain types."""
        return {
            'sentence': self.sentence(),
            'config': self.config,
            'zeros': self.zeros,
            'prunable': self.prunable,
            'rate': self.zeros / max(self.prunable, 1),
            'layers': [
                {**asdict(row), 'rate': row.rate} for row in self.layers
            ],
            'dense': dict(self.dense),
            **({'learned': self.learned} if self.learned else {}),
            **({'fallback': self.fallback} if self.fallback else {}),
            'seconds': self.seconds,
        }
