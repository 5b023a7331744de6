"""Measure what a choice costs in output loss, with the quantizers on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.analysis.sensitivity.loss import OutputLoss, run_like
from taskptq.calibration.batches import batch_length, batch_metas
from taskptq.calibration.calibrate import calibration_mode
from taskptq.core import float_only
from taskptq.core.distributed import gathered
from taskptq.core.switches import quantizing

__all__ = [
    'Measured',
    'Reference',
    'disagreement_allowed',
    'loss_allowed',
]

Heads = Mapping[str, Tensor]
# Share of the score that one unit of output loss costs, with a margin: 0.5 on
# YOLOX-nano, about 3 on a small Conditional DETR, up to 10 on a small Faster
# R-CNN; the latter two within the noise of their AP.
SCORE_PER_LOSS = 10.0
# Share of the score that changed predictions cost, at most: where one of two
# models is wrong, it is the float model about half of the time at 8 bits, and
# even of larger errors not all are for the worse.
SCORE_PER_DISAGREEMENT = 0.5


def loss_allowed(keep: float) -> float:
    """Return the largest output loss that should keep a share of the score.

    >>> round(loss_allowed(0.99), 6)
    0.001
    """
    return (1 - keep) / SCORE_PER_LOSS


def disagreement_allowed(keep: float) -> float:
    """Return the largest disagreement that should keep a share of the score.

    >>> round(disagreement_allowed(0.99), 6)
    0.02
    """
    return (1 - keep) / SCORE_PER_DISAGREEMENT


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a quantized model gave.

    Args:
        loss: Output loss per image, the mean over all ranks; at least as
            large as its disagreement stands for.
        heads: Outputs for each batch of this rank.
        disagreement: Changed share of the decoded predictions, [0, 1]; None
            if the adapter doesn't compare them.
    """

    loss: float
    heads: Sequence[Mapping[str, Tensor]]
    disagreement: float | None = None


class Reference:
    """Float outputs of some batches, and the loss of other outputs.

    An output loss is relative to how far an output varies between positions
    and images. Predictions with a fixed tolerance, such as a lane's few
    pixels in a wide image, can be lost below any such limit. An adapter with
    ``disagreement(target, quant, metas)`` (outputs of both models and the
    metainfo of the images -> share of the decoded predictions that changed,
    in [0, 1], for each image) has them compared as well. The stricter of both
    counts: ``loss = max(output loss, disagreement * loss_allowed /
    disagreement_allowed)``.

    Args:
        model: Prepared and calibrated.
        batches: Calibration batches of this rank.
        adapter: The model's adapter.

    Raises:
        ValueError: If no output has a signal.
    """

    def __init__(
        self, model: nn.Module, batches: Sequence[Any], *, adapter: Any
    ) -> None:
        self.batches = batches
        self.adapter = adapter
        with torch.no_grad(), calibration_mode(model), float_only(model):
            self.heads: list[dict[str, Tensor]] = [
                adapter.forward_heads(model, batch) for batch in batches
            ]
        self.num_images = sum(map(batch_length, batches)) or len(batches)
        self.loss = OutputLoss(adapter, self.heads, num_images=self.num_images)

    @torch.no_grad()
    def measure(self, model: nn.Module, *, weights: bool = True) -> Measured:
        """Run the model with its quantizers on, and compare.

        Args:
            model: Calibrated or frozen.
            weights: Whether weights are quantized as well.
        """
        found = []
        total = changed = 0.0
        compares = self._compares
        with calibration_mode(model), quantizing(model, weights=weights):
            for batch, heads in zip(self.batches, self.heads, strict=True):
                quant = run_like(self.adapter, model, batch, heads=heads)
                total += self.loss.between(quant, heads)
                found.append(quant)
                if compares:
                    changed += self._changed(heads, quant, batch)
        loss = _mean(total / self.num_images)
        if not compares:
            return Measured(loss=loss, heads=found)
        share = _mean(changed / self.num_images)
        as_loss = share * SCORE_PER_DISAGREEMENT / SCORE_PER_LOSS
        return Measured(
            loss=max(loss, as_loss), heads=found, disagreement=share
        )

    @property
    def _compares(self) -> bool:
        """Whether predictions can be decoded and compared."""
        return hasattr(self.adapter, 'disagreement') and all(
            meta for batch in self.batches for meta in batch_metas(batch)
        )

    def _changed(self, target: Heads, quant: Heads, batch: Any) -> float:
        """Return the sum of the disagreements of a batch's images."""
        metas = batch_metas(batch)
        return float(sum(self.adapter.disagreement(target, quant, metas)))


def _mean(value: float) -> float:
    values = gathered(value)
    return float(sum(values) / len(values))
