"""The squared error of a unit, weighted by position."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from taskptq.reconstruction.losses import Outputs, ReconContext
from taskptq.reconstruction.position_weights import PositionWeights


class PositionWeightedLoss:
    """Noise to signal of each output, its positions weighted, summed.

    As :class:`~taskptq.reconstruction.losses.MSEReconLoss`, but for weights;
    an output whose rows are not images, or without weights, has none.

    Args:
        weights: Weights of the units' outputs.
        lengths: Images of each calibration batch.
    """

    def __init__(
        self, weights: PositionWeights, lengths: Sequence[int]
    ) -> None:
        self.weights = weights
        self.places = [
            (batch, row)
            for batch, length in enumerate(lengths)
            for row in range(length)
        ]

    def __call__(
        self, quant_out: Outputs, float_out: Outputs, context: ReconContext
    ) -> Tensor:
        """Return the loss; shapes of both outputs are equal."""
        if isinstance(quant_out, Tensor):
            quant_out = {'0': quant_out}
        if isinstance(float_out, Tensor):
            float_out = {'0': float_out}
        losses = []
        for name, quant in quant_out.items():
            if not quant.numel():
                losses.append(quant.float().sum())  # 0: no rows
                continue
            exact = float_out[name].float()
            weights = self._of(f'{context.unit}:{name}', exact, context)
            noise = (quant.float() - exact).square()
            signal = exact.square()
            if weights is not None:
                noise, signal = noise * weights, signal * weights
            losses.append(noise.mean() / signal.mean().clamp(min=1e-12))
        return torch.stack(losses).sum()

    def _of(
        self, output: str, exact: Tensor, context: ReconContext
    ) -> Tensor | None:
        """Return weights that broadcast to an output, None for 1."""
        axis = 1 if exact.dim() == 4 else exact.dim() - 1
        rows = []
        for image in context.image_ids:
            batch, row = self.places[image]
            maps = self.weights.of_units.get((output, batch), {})
            # Of several calls nobody knows which one an output is of.
            if list(maps) != [0] or row >= len(maps[0]):
                return None
            rows.append(maps[0][row])
        shape = (*exact.shape[:axis], *exact.shape[axis + 1 :])
        if not rows or (len(rows), *rows[0].shape) != shape:
            return None
        if any(row.shape != rows[0].shape for row in rows):
            return None
        return torch.stack(rows).unsqueeze(axis).to(exact)
