"""Look at the tensors that quantizers see: samples, extremes, noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.analysis.sensitivity.signals import Signals, signals_of
from taskptq.analysis.sensitivity.trace import weights_of
from taskptq.calibration.calibrate import calibration_mode
from taskptq.core import AffineQuantizer, Quantizer, float_only
from taskptq.core.observers import channel_rows
from taskptq.core.switches import is_weight_quantizer, quantizers

__all__ = ['TensorSurvey', 'survey', 'survey_weights', 'watching']

# Values kept of each tensor of each batch, spread evenly over it.
SAMPLE = 4096
# At least so many of each channel.
LEAST_PER_CHANNEL = 16


class TensorSurvey:
    """What one calibrated quantizer saw.

    Args:
        quantizer: The quantizer.
        is_weight: Whether the tensor is a weight, whose channels are those
            of its grid.

    Attributes:
        count: Values seen.
        low: Lowest value of each range of the grid, (C,) or (1,).
        high: Highest, likewise.
        sums: Of each channel of the tensor: values, their squares and those
            of the rounding errors, (3, C).
    """

    def __init__(
        self, quantizer: Quantizer, *, is_weight: bool = False
    ) -> None:
        self.quantizer = quantizer
        self.is_weight = is_weight
        self.count = 0
        self.low = torch.empty(0)
        self.high = torch.empty(0)
        self.sums = torch.empty(0)
        self._samples: list[Tensor] = []
        self._seen = torch.zeros(0, dtype=torch.bool)

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Add one tensor."""
        if x.numel() == 0:
            return
        x = x.detach().float()
        rows = channel_rows(x, ch_axis=self.quantizer.spec.ch_axis)
        low, high = torch.aminmax(rows, dim=1)
        if self.count:
            low = torch.minimum(low, self.low)
            high = torch.maximum(high, self.high)
        self.low, self.high = low, high
        self.count += x.numel()
        kept = max(SAMPLE // rows.shape[0], LEAST_PER_CHANNEL)
        self._samples.append(rows[:, :: -(-rows.shape[1] // kept)].clone())
        self._add_sums(x, self.quantizer.fake_quantize(x) - x)
        self._see_codes(x)

    def rows(self) -> Tensor:
        """Return sampled values with both exact ends, (C, N)."""
        ends = [self.low[:, None], self.high[:, None]]
        return torch.cat([*self._samples, *ends], dim=1)

    def signals(self, reader: Tensor | None = None) -> Signals:
        """Return the signals.

        Args:
            reader: Weight of the layer that reads the tensor, (G, O, C / G):
                squares summed over the kernel, for each group; see
                ``signals.reading``. None if unknown.
        """
        used = float(self._seen.float().mean()) if self._seen.numel() else 1.0
        return signals_of(
            self.sums,
            count=self.count,
            ends=(float(self.low.min()), float(self.high.max())),
            codes_used=used,
            reader=reader,
            by_channel=self.is_weight,
        )

    def _add_sums(self, x: Tensor, noise: Tensor) -> None:
        axis = self.quantizer.spec.ch_axis if self.is_weight else None
        if axis is None:
            axis = 1 if x.dim() == 4 else x.dim() - 1
        other = [d for d in range(x.dim()) if d != axis]
        parts = (x, x.square(), noise.square())
        found = torch.stack(
            [(p.sum(dim=other) if other else p).double() for p in parts]
        )
        fits = self.sums.shape == found.shape
        self.sums = self.sums + found if fits else found

    def _see_codes(self, x: Tensor) -> None:
        if not isinstance(self.quantizer, AffineQuantizer):
            return
        lowest = self.quantizer.quant_min
        levels = self.quantizer.quant_max - lowest + 1
        codes = self.quantizer.quantize(x).flatten() - lowest
        seen = torch.bincount(codes, minlength=levels) > 0
        self._seen = seen if not self._seen.numel() else self._seen | seen


@contextmanager
def watching(model: nn.Module) -> Iterator[dict[str, TensorSurvey]]:
    """Survey every calibrated activation quantizer while a model runs."""
    found = {
        name: TensorSurvey(quantizer)
        for name, quantizer in quantizers(model)
        if quantizer.calibrated and not is_weight_quantizer(name)
    }
    handles = [
        one.quantizer.register_forward_pre_hook(_adder(one))
        for one in found.values()
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def survey(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    forward: Callable[[nn.Module, Any], Any],
) -> dict[str, TensorSurvey]:
    """Run the float model and survey the tensors of its quantizers.

    Args:
        model: Prepared and calibrated.
        batches: Collated batches.
        forward: Runs the model on one batch.

    Returns:
        Surveys of activations that were reached, by quantizer.
    """
    with (
        calibration_mode(model),
        float_only(model),
        watching(model) as found,
    ):
        for batch in batches:
            forward(model, batch)
    return {name: one for name, one in found.items() if one.count}


def survey_weights(model: nn.Module) -> dict[str, TensorSurvey]:
    """Survey the weights of every calibrated weight quantizer."""
    named = dict(quantizers(model))
    found = {}
    for name, weight in weights_of(model).items():
        if named[name].calibrated:
            found[name] = TensorSurvey(named[name], is_weight=True)
            found[name].add(weight)
    return found


def _adder(one: TensorSurvey) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any) -> None:
        one.add(args[0])

    return hook
