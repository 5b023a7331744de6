"""The output loss: how much a model's predictions change, as one number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ['OutputLoss', 'group_of']

Heads = Mapping[str, Tensor]
# Below this much signal an output says nothing in the images seen.
LEAST_SIGNAL = 1e-12


class OutputLoss:
    """Relative squared error of a model's outputs, weighted by relevance.

    ``L = mean over g of  sum_p w_p (h_hat_p - h_p)^2 / S_g`` of one image,
    where g is a kind of output (its name up to the first dot, so that levels
    share one), w are the adapter's ``output_weights`` and S_g is the weighted
    variance ``sum_p w_p (h_p - mean_c)^2`` of the float outputs, around the
    mean of each channel, per image. 0.01 is noise 20 dB below the signal.

    Args:
        adapter: Has ``output_weights(heads)``.
        heads: Float outputs of some batches, which set S.
        num_images: Images in these batches.

    Raises:
        ValueError: If no output has a signal.
    """

    def __init__(
        self, adapter: Any, heads: Sequence[Heads], *, num_images: int
    ) -> None:
        self.adapter = adapter
        self.signals: dict[str, float] = {}
        for outputs in heads:
            for name, weight in adapter.output_weights(outputs).items():
                signal = _signal(outputs[name], weight) / num_images
                group = group_of(name)
                self.signals[group] = self.signals.get(group, 0.0) + signal
        self.signals = {
            group: signal
            for group, signal in self.signals.items()
            if signal > LEAST_SIGNAL
        }
        if not self.signals:
            raise ValueError(
                'no output of the float model varies on these images: check '
                'the images, or register an adapter for its class'
            )

    def weights(self, heads: Heads) -> dict[str, Tensor]:
        """Return the weight of each squared error, by output.

        Args:
            heads: Float outputs of one batch.

        Returns:
            Tensors that broadcast to the outputs. Their sum over an output
            times its squared errors is its part of the loss, summed over the
            images.
        """
        return {
            name: weight.detach() / (len(self.signals) * self.signals[group])
            for name, weight in self.adapter.output_weights(heads).items()
            if (group := group_of(name)) in self.signals
        }

    def probe(self, heads: Heads, *, generator: torch.Generator) -> Tensor:
        """Draw z with ``E[z z^T] = diag(w)`` and return z . h.

        The gradient of the result with respect to any tensor x is
        ``g = J^T z``, and ``E[(g . e)^2]`` is the loss that an error e of x
        causes, to first order in e.

        Args:
            heads: Float outputs of one batch, with gradients.
            generator: Random numbers, on the CPU.
        """
        total = torch.zeros(())
        for name, weight in self.weights(heads).items():
            head = heads[name]
            # Signs instead of normal values: less variance, same covariance.
            signs = torch.randint(0, 2, head.shape, generator=generator)
            signs = signs.mul_(2).sub_(1).to(head)
            total = total.to(head) + (head * (weight.sqrt() * signs)).sum()
        return total

    @torch.no_grad()
    def between(self, quant: Heads, target: Heads) -> float:
        """Return the loss of one batch, summed over its images.

        Args:
            quant: Outputs of the quantized model.
            target: Outputs of the float model on the same batch.
        """
        return sum(
            float(((quant[name] - target[name]).square() * weight).sum())
            for name, weight in self.weights(target).items()
        )


def group_of(name: str) -> str:
    """Return the kind of an output.

    >>> group_of('1.0'), group_of('rpn_cls.2'), group_of('mask')
    ('1', 'rpn_cls', 'mask')
    """
    return name.partition('.')[0]


def _signal(head: Tensor, weight: Tensor) -> float:
    """Return the weighted variance of an output times its weights' sum."""
    head = head.detach().float()
    full = weight.detach().expand_as(head)
    axis = 1 if head.dim() == 4 else head.dim() - 1
    other = [d for d in range(head.dim()) if d != axis]
    total = full.sum(dim=other, keepdim=True).clamp(min=LEAST_SIGNAL)
    mean = (head * full).sum(dim=other, keepdim=True) / total
    return float(((head - mean).square() * full).sum())
