"""Distributions of tensors over the codes of their grids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.analysis.page.noise import Energy
from taskptq.calibration.calibrate import Forward, calibration_mode
from taskptq.core.functional import per_channel
from taskptq.core.progress import Progress
from taskptq.core.quantizers import AffineQuantizer, Quantizer
from taskptq.core.switches import is_weight_quantizer, quantizers
from taskptq.modules.base import quant_modules

__all__ = ['TensorShape', 'activation_shapes', 'weight_shapes', 'worst']

NUM_BINS = 128
# The histogram covers the grid and this share of its width on either side.
MARGIN = 0.25


@dataclass(kw_only=True)
class TensorShape:
    """How the values of one tensor lie on its grid, in grid steps.

    Args:
        name: Qualified name of the quantizer.
        num_bits: Bits of the grid.
        quant_min: Least code.
        quant_max: Greatest code.
        scale: Size of one step; the mean over channels.
        channels: Scales: 1 is per tensor.
        counts: Values by bin, from ``low`` to ``high``.
        low: Left end of the first bin, as a code.
        high: Right end of the last bin, as a code.
        least: Least value, as a code that may lie outside of the grid.
        greatest: Greatest value, as such a code.
        clipped: Share of the values outside of the grid.
        db: Signal over quantization noise, in dB.
    """

    name: str
    num_bits: int
    quant_min: int
    quant_max: int
    scale: float
    channels: int
    counts: list[float] = field(default_factory=list)
    low: float = 0.0
    high: float = 0.0
    least: float = 0.0
    greatest: float = 0.0
    clipped: float = 0.0
    db: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain types."""
        return dict(vars(self))


class _Histogram:
    """Values of one tensor, counted by code."""

    def __init__(self, name: str, quantizer: AffineQuantizer) -> None:
        self.name = name
        self.quantizer = quantizer
        width = quantizer.quant_max - quantizer.quant_min + 1
        self.low = quantizer.quant_min - 0.5 - MARGIN * width
        self.high = quantizer.quant_max + 0.5 + MARGIN * width
        self.counts = torch.zeros(NUM_BINS, dtype=torch.float64)
        self.energy = Energy()
        self.least, self.greatest = float('inf'), float('-inf')
        self.outside = self.total = 0

    def add(self, x: Tensor, *, noisy: Tensor) -> None:
        """Count the values of a tensor.

        Args:
            x: Values; their shape fits the grid's channels.
            noisy: The same on the grid.
        """
        if not x.numel():
            return
        codes = self._codes(x)
        low, high = (float(value) for value in codes.aminmax())
        self.least = min(self.least, low)
        self.greatest = max(self.greatest, high)
        edges = self.quantizer.quant_min - 0.5, self.quantizer.quant_max + 0.5
        outside = (codes < edges[0]) | (codes > edges[1])
        self.outside += int(outside.sum())
        self.total += codes.numel()
        self.counts += torch.histc(
            codes.float().cpu(), NUM_BINS, self.low, self.high
        ).double()
        self.energy.add(x, noisy)

    def _codes(self, x: Tensor) -> Tensor:
        """Return values as codes that are neither rounded nor clipped."""
        grid = self.quantizer.parameters_of_grid()
        shape = {'ndim': x.dim(), 'ch_axis': grid['ch_axis']}
        scale = per_channel(grid['scale'], **shape)
        return x / scale + per_channel(grid['zero_point'], **shape)

    def shape(self) -> TensorShape:
        """Return what was counted."""
        return TensorShape(
            name=self.name,
            num_bits=self.quantizer.spec.num_bits,
            quant_min=self.quantizer.quant_min,
            quant_max=self.quantizer.quant_max,
            scale=float(self.quantizer.scale.detach().mean()),
            channels=self.quantizer.scale.numel(),
            counts=self.counts.tolist(),
            low=self.low,
            high=self.high,
            least=self.least,
            greatest=self.greatest,
            clipped=self.outside / max(1, self.total),
            db=self.energy.db,
        )


def _is_drawable(quantizer: Quantizer | None) -> bool:
    """Whether codes are a linear function of values."""
    return (
        isinstance(quantizer, AffineQuantizer)
        and quantizer.calibrated
        and not quantizer.rescales
    )


def activation_shapes(
    quant_model: nn.Module, batches: Sequence[Any], *, forward: Forward
) -> list[TensorShape]:
    """Count the inputs of every quantizer inside the quantized model.

    Args:
        quant_model: Quantized model, quantizers on.
        batches: Collated batches.
        forward: Runs the model on one batch.
    """
    found = {
        name: _Histogram(name, quantizer)
        for name, quantizer in quantizers(quant_model)
        if not is_weight_quantizer(name)
        and isinstance(quantizer, AffineQuantizer)
        and _is_drawable(quantizer)
    }
    shown = Progress('read distributions', total=len(batches))
    with calibration_mode(quant_model), _watched(quant_model, found), shown:
        for batch in batches:
            forward(quant_model, batch)
            shown.advance()
    return [one.shape() for one in found.values() if one.total]


@contextmanager
def _watched(
    model: nn.Module, histograms: Mapping[str, _Histogram]
) -> Iterator[None]:
    with ExitStack() as stack:
        for name, quantizer in quantizers(model):
            if name not in histograms:
                continue

            def after(
                module: nn.Module,
                args: tuple[Any, ...],
                output: Tensor,
                name: str = name,
            ) -> None:
                histograms[name].add(args[0], noisy=output)

            stack.callback(quantizer.register_forward_hook(after).remove)
        yield


@torch.no_grad()
def weight_shapes(
    float_model: nn.Module, quant_model: nn.Module
) -> list[TensorShape]:
    """Count the float weights on the grids of their quantized versions.

    Args:
        float_model: See ``noise.measure_noise``.
        quant_model: The quantized model.
    """
    clean = dict(quant_modules(float_model))
    found = []
    for name, module in quant_modules(quant_model):
        for parameter, slot in module.active_slots():
            quantizer = getattr(module, slot)
            weight = getattr(clean.get(name), parameter, None)
            noisy = getattr(module, parameter)
            if (
                weight is None
                or not _is_drawable(quantizer)
                or weight.shape != noisy.shape
            ):
                continue
            histogram = _Histogram(f'{name}.{slot}', quantizer)
            histogram.add(weight, noisy=noisy)
            found.append(histogram.shape())
    return found


def worst(shapes: Sequence[TensorShape], *, most: int) -> list[TensorShape]:
    """Return the tensors that lose most, the worst first.

    A tensor that several layers read is returned once.
    """
    known = [shape for shape in shapes if shape.db is not None]
    found: list[TensorShape] = []
    for shape in sorted(known, key=lambda shape: shape.db or 0.0):
        is_new = all(shape.counts != other.counts for other in found)
        if is_new and len(found) < most:
            found.append(shape)
    return found
