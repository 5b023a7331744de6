"""Error of all outputs, weighted by how much the predictions depend on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from taskptq.core.distributed import gathered
from taskptq.core.settings import Number
from taskptq.methods.output_error.output_loss import OutputLoss
from taskptq.reconstruction.losses import NetworkProbe, Outputs, ReconContext
from taskptq.registry import RECON_LOSSES

__all__ = ['OutputErrorLoss']

Heads = Mapping[str, Tensor]


@dataclass
class _Measured:
    """What a loss has measured on the float outputs, since ``begin``."""

    loss: OutputLoss | None = None
    means: dict[str, float] = field(default_factory=dict)


@RECON_LOSSES.register_module()
class OutputErrorLoss:
    """Squared error of the model's outputs, weighted by relevance.

    ``L = mean over g of  sum_p w_p (h_hat_p - h_p)^2 / S_g`` per image, as
    in :class:`OutputLoss`, with the weights

    ``w = (1 - floor) w_adapter + floor mean(w_adapter)``,

    the mean over all positions and images of an output: few objects carry
    most of the adapter's weight, and a network fitted to them alone invents
    others in the background.

    Use it with ``reconstruction.scope='network'`` or ``network_steps``. It
    needs no labels, and works with any model whose outputs an adapter names.

    Args:
        floor: Share of an output's weight that is spread evenly over its
            positions, [0, 1]; 1 weighs all alike.

    Raises:
        ValueError: If the share is invalid.
    """

    def __init__(self, *, floor: float = 0.1) -> None:
        self.floor = Number(low=0, high=1).read(floor, name='floor')
        # Plain text, part of the digest of saved states.
        self.recipe = f'floor={self.floor}'
        self._measured = _Measured()

    def begin(self, probe: NetworkProbe) -> None:
        """Measure the float outputs of all batches."""
        images = sum(len(metas) for metas in probe.metas)
        loss = OutputLoss(
            probe.adapter,
            probe.heads_float,
            num_images=images or len(probe.heads_float),
        )
        # The ranks train one network: their scale must be the same.
        parts = gathered(loss.signals)
        loss.signals = {
            group: sum(part.get(group, 0.0) for part in parts) / len(parts)
            for group in {name for part in parts for name in part}
        }
        self._measured = _Measured(
            loss=loss, means=_mean_weights(loss, probe.heads_float)
        )

    def __call__(
        self, quant_out: Outputs, float_out: Outputs, context: ReconContext
    ) -> Tensor:
        """Return the loss per image of one batch.

        Args:
            quant_out: Named outputs of the quantized model.
            float_out: Named outputs of the float model.
            context: Only its ``image_ids`` count.

        Raises:
            ValueError: If the outputs have no names, or ``begin`` was not
                called: the loss is one of whole networks.
        """
        measured = self._measured
        if (
            measured.loss is None
            or isinstance(quant_out, Tensor)
            or isinstance(float_out, Tensor)
        ):
            raise ValueError(
                'OutputErrorLoss compares the outputs of whole networks: '
                "give reconstruction.network_steps, or scope='network'"
            )
        terms = []
        for name, weight in measured.loss.weights(float_out).items():
            even = self.floor * measured.means[name]
            error = (quant_out[name] - float_out[name]).float().square()
            terms.append((error * ((1 - self.floor) * weight + even)).sum())
        return torch.stack(terms).sum() / max(len(context.image_ids), 1)


def _mean_weights(
    loss: OutputLoss, outputs: Sequence[Heads]
) -> dict[str, float]:
    """Return the mean weight of each output's values over all ranks."""
    sums: dict[str, list[float]] = {}
    for heads in outputs:
        for name, weight in loss.weights(heads).items():
            total = sums.setdefault(name, [0.0, 0.0])
            full = weight.expand_as(heads[name])
            total[0] += float(full.sum())
            total[1] += full.numel()
    parts: list[dict[str, Any]] = gathered(sums)
    means = {}
    for name in sums:
        own = [part[name] for part in parts if name in part]
        means[name] = sum(one[0] for one in own) / max(
            sum(one[1] for one in own), 1.0
        )
    return means
