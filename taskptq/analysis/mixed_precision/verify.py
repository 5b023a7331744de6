"""Measure what a choice costs in output loss, with the quantizers on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.analysis.sensitivity.loss import OutputLoss, run_like
from taskptq.calibration.batches import batch_length
from taskptq.calibration.calibrate import calibration_mode
from taskptq.core import float_only
from taskptq.core.distributed import gathered
from taskptq.core.switches import quantizing

__all__ = ['Measured', 'Reference', 'loss_allowed']

# Share of the score that one unit of output loss costs, with a margin: 0.5 on
# YOLOX-nano, about 3 on a small Conditional DETR, up to 10 on a small Faster
# R-CNN; the latter two within the noise of their AP.
SCORE_PER_LOSS = 10.0


def loss_allowed(keep: float) -> float:
    """Return the largest output loss that should keep a share of the score.

    >>> round(loss_allowed(0.99), 6)
    0.001
    """
    return (1 - keep) / SCORE_PER_LOSS


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a quantized model gave.

    Args:
        loss: Output loss per image, the mean over all ranks.
        heads: Outputs for each batch of this rank.
    """

    loss: float
    heads: Sequence[Mapping[str, Tensor]]


class Reference:
    """Float outputs of some batches, and the loss of other outputs.

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
        total = 0.0
        with calibration_mode(model), quantizing(model, weights=weights):
            for batch, heads in zip(self.batches, self.heads, strict=True):
                quant = run_like(self.adapter, model, batch, heads=heads)
                total += self.loss.between(quant, heads)
                found.append(quant)
        losses = gathered(total / self.num_images)
        return Measured(loss=float(sum(losses) / len(losses)), heads=found)
