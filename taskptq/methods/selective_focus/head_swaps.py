"""Measure the effect of one head's error on the decoded predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from taskptq.core.distributed import mean_over_ranks

Heads = Mapping[str, Tensor]
Metas = Sequence[Mapping[str, Any]]
# Predictions of the float model, those of the changed model, metainfo of the
# images -> distance of each image, at least 0
Distance = Callable[[Sequence[Any], Sequence[Any], Metas], Sequence[float]]

FORMS = ('swap_in', 'leave_one_out')


def head_names(outputs: Heads) -> tuple[str, ...]:
    """Return the names of the heads among named outputs.

    Integer outputs are not heads: they index where others were computed.
    """
    return tuple(
        name for name, output in outputs.items() if output.is_floating_point()
    )


@dataclass(frozen=True, kw_only=True)
class HeadBatch:
    """One batch of the float model, with its decoded predictions.

    Args:
        heads: Named outputs of the float model.
        metas: Metainfo of each image.
        decoded: Predictions that the adapter decodes from the heads.
    """

    heads: Heads
    metas: Metas
    decoded: Sequence[Any]


class HeadSwaps:
    """Decode mixtures of float and quantized heads.

    Args:
        heads_float: Named outputs of the float model, by batch.
        metas: Metainfo of the images, by batch.
        adapter: Adapter whose ``decode`` turns heads into predictions.
        distance: Distance of predictions.
        form: 'swap_in' puts one quantized head among float ones;
            'leave_one_out' puts one float head among quantized ones and
            measures how much the distance falls.

    Raises:
        ValueError: If the form is unknown.
    """

    def __init__(
        self,
        heads_float: Sequence[Heads],
        metas: Sequence[Metas],
        *,
        adapter: Any,
        distance: Distance,
        form: str = 'swap_in',
    ) -> None:
        if form not in FORMS:
            raise ValueError(f'sensitivity={form!r}: choose one of {FORMS}')
        self.adapter = adapter
        self.distance = distance
        self.form = form
        self.batches = [
            HeadBatch(
                heads=heads, metas=meta, decoded=self._decode(heads, meta)
            )
            for heads, meta in zip(heads_float, metas, strict=True)
        ]
        first: Heads = self.batches[0].heads if self.batches else {}
        self.names = head_names(first)

    def sensitivities(self, quant: Sequence[Heads]) -> dict[str, float]:
        """Return the sensitivity of each head, mean over images and ranks.

        Args:
            quant: Named outputs of the quantized model, by batch.
        """
        return {
            name: points[-1]
            for name, points in self.curves(quant, strengths=(1.0,)).items()
        }

    def curves(
        self, quant: Sequence[Heads], *, strengths: Sequence[float]
    ) -> dict[str, list[float]]:
        """Return each head's sensitivity at parts of its error.

        Args:
            quant: Named outputs of the quantized model, by batch.
            strengths: Parts lambda of the error: the head is
                ``h + lambda (h_hat - h)``.

        Returns:
            By head, one sensitivity of at least 0 per strength.
        """
        rows = [
            [self.mixed_distance(quant, name, strength=s) for s in strengths]
            for name in self.names
        ]
        base = [0.0] * len(self.names)
        if self.form == 'leave_one_out':
            base = [
                self.mixed_distance(quant, name, strength=0.0)
                for name in self.names
            ]
        table = torch.tensor(rows, dtype=torch.float64)
        table = table - torch.tensor(base, dtype=torch.float64)[:, None]
        device = self.batches[0].heads[self.names[0]].device
        values = mean_over_ranks(table.float().to(device)).clamp(min=0).cpu()
        return dict(zip(self.names, values.tolist(), strict=True))

    @torch.no_grad()
    def mixed_distance(
        self, quant: Sequence[Heads], name: str, *, strength: float
    ) -> float:
        """Return the mean distance with a part of one head's error.

        Args:
            quant: Named outputs of the quantized model, by batch.
            name: The head; the others are float ('swap_in') or quantized
                ('leave_one_out').
            strength: Part of the head's error.
        """
        distances: list[float] = []
        for batch, heads in zip(self.batches, quant, strict=True):
            mixed = dict(batch.heads if self.form == 'swap_in' else heads)
            mixed[name] = torch.lerp(
                batch.heads[name], heads[name].to(batch.heads[name]), strength
            )
            distances.extend(self.distances(batch, mixed))
        return sum(distances) / max(1, len(distances))

    def distances(self, batch: HeadBatch, heads: Heads) -> list[float]:
        """Return the distance of each image's predictions to the float's."""
        decoded = self._decode(heads, batch.metas)
        found = self.distance(batch.decoded, decoded, batch.metas)
        return [float(value) for value in found]

    @torch.no_grad()
    def _decode(self, heads: Heads, metas: Metas) -> list[Any]:
        return list(self.adapter.decode(dict(heads), metas))
