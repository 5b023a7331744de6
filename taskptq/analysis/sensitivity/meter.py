"""Measure the output loss of a model with chosen tensors quantized."""

from __future__ import annotations

from collections.abc import (
    Callable,
    Collection,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.analysis.sensitivity.grids import Rounder
from taskptq.analysis.sensitivity.loss import OutputLoss, run_like
from taskptq.calibration.batches import batch_length
from taskptq.calibration.calibrate import calibration_mode
from taskptq.core import float_only
from taskptq.core.switches import quantizers

__all__ = ['Meter', 'only']


@contextmanager
def only(
    model: nn.Module,
    names: Collection[str],
    *,
    rounders: Mapping[str, Rounder] | None = None,
) -> Iterator[None]:
    """Turn just some quantizers of a model on.

    Args:
        model: Prepared and calibrated.
        names: Quantizers to turn on.
        rounders: What rounds instead of some of them, by name.
    """
    replaced = rounders or {}
    with ExitStack() as stack:
        stack.enter_context(float_only(model))
        for name, quantizer in quantizers(model):
            quantizer.enabled = name in names
            if quantizer.enabled and name in replaced:
                handle = quantizer.register_forward_hook(
                    _replacing(replaced[name])
                )
                stack.callback(handle.remove)
        yield


class Meter:
    """Measures output losses on a few images, against the float model.

    Args:
        model: Prepared and calibrated.
        batches: Few collated batches; the float outputs are kept.
        adapter: The model's adapter.
    """

    def __init__(
        self, model: nn.Module, batches: Sequence[Any], *, adapter: Any
    ) -> None:
        self.model = model
        self.batches = batches
        self.adapter = adapter
        self.num_images = sum(batch_length(b) or 1 for b in batches)
        self.names = tuple(
            name for name, one in quantizers(model) if one.calibrated
        )
        with torch.no_grad(), calibration_mode(model), float_only(model):
            self.heads: list[dict[str, Tensor]] = [
                dict(adapter.forward_heads(model, batch)) for batch in batches
            ]
        self.loss = OutputLoss(adapter, self.heads, num_images=self.num_images)

    def measure(
        self,
        names: Collection[str],
        *,
        rounders: Mapping[str, Rounder] | None = None,
    ) -> float:
        """Return the loss per image with some quantizers on.

        Args:
            names: Quantizers to turn on; all others pass through.
            rounders: What rounds instead of some of them, by name.
        """
        total = 0.0
        with (
            calibration_mode(self.model),
            only(self.model, frozenset(names), rounders=rounders),
        ):
            for batch, heads in zip(self.batches, self.heads, strict=True):
                found = run_like(self.adapter, self.model, batch, heads=heads)
                total += self.loss.between(found, heads)
        return total / self.num_images

    def all_but(self, names: Collection[str]) -> frozenset[str]:
        """Return every calibrated quantizer but some."""
        return frozenset(self.names) - frozenset(names)


def _replacing(rounded: Rounder) -> Callable[..., Tensor]:
    def hook(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        return rounded(args[0])

    return hook
