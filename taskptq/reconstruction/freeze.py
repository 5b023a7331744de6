"""Freeze a model: put weights on their grids, and verify it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.core import enable
from taskptq.core.switches import quantizers
from taskptq.modules.base import QuantModule, quant_modules

# Distinct codes of a row are marked in a table of at most this width.
MARKED_LEVELS = 1 << 10


@dataclass(frozen=True, kw_only=True)
class FreezeReport:
    """Report of a freeze.

    Args:
        num_weights: Weight tensors verified to lie on their integer grids.
        most_levels: Highest number of distinct codes in one channel of a
            weight, by bit width.
        num_activations: Enabled activation quantizers.
        share_on_levels: Share of the quantized weights' elements that are on
            a few levels, by the kind of these.
    """

    num_weights: int
    most_levels: dict[int, int]
    num_activations: int
    share_on_levels: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types."""
        levels = {str(k): v for k, v in self.most_levels.items()}
        found = {**vars(self), 'most_levels': levels}
        if not self.share_on_levels:
            del found['share_on_levels']
        return found


def freeze(model: nn.Module) -> FreezeReport:
    """Finish quantization: the model evaluates quantized from here on.

    Weights move onto their grids, learned scales are final and every
    quantizer is enabled.

    Raises:
        RuntimeError: If a weight is off its grid or has too many levels, or
            ``drop_prob`` is still set; names the layer.
    """
    for name, quantizer in quantizers(model):
        if quantizer.drop_prob > 0:
            raise RuntimeError(
                f'{name}: drop_prob is still {quantizer.drop_prob}: leave '
                'the dropping() context before freeze()'
            )
        if quantizer.calibrated:
            quantizer.settle()
        quantizer.requires_grad_(False)
        quantizer.observer = None
    num_weights = 0
    most_levels: dict[int, int] = {}
    sizes: dict[str, int] = {}
    for name, module in quant_modules(model):
        module.freeze()
        for parameter, _ in module.active_slots():
            levels = check_on_grid(module, parameter, name=name)
            if levels is not None:
                bits, count = levels
                num_weights += 1
                most_levels[bits] = max(most_levels.get(bits, 0), count)
                kind = module.weight_kind(parameter)
                size = getattr(module, parameter).numel()
                sizes[kind] = sizes.get(kind, 0) + size
    enable(model)
    active = [
        quantizer
        for _, quantizer in quantizers(model)
        if quantizer.calibrated and not quantizer.frozen
    ]
    return FreezeReport(
        num_weights=num_weights,
        most_levels=most_levels,
        num_activations=len(active),
        share_on_levels=_shares(sizes),
    )


def _shares(sizes: dict[str, int]) -> dict[str, float]:
    total = sum(sizes.values())
    return {kind: size / total for kind, size in sizes.items() if kind}


@torch.no_grad()
def check_on_grid(
    module: QuantModule, parameter: str, *, name: str
) -> tuple[int, int] | None:
    """Verify that a weight lies on its integer grid.

    Returns:
        (bits, most distinct codes in one channel); None if it is float.

    Raises:
        RuntimeError: If it is off its grid or has too many levels.
    """
    quantizer = module.weight_quantizer_of(parameter)
    if quantizer is None or not quantizer.calibrated:
        return None
    weight = getattr(module, parameter)
    codes = quantizer.quantize(weight)
    if not torch.equal(quantizer.dequantize(codes).to(weight.dtype), weight):
        raise RuntimeError(f'{name}.{parameter} is off its integer grid')
    axis = quantizer.spec.ch_axis
    rows = (
        codes.reshape(1, -1)
        if axis is None
        else (codes.transpose(0, axis).flatten(1))
    )
    most = _most_levels(rows - quantizer.quant_min)
    if most > quantizer.num_levels:
        raise RuntimeError(
            f'{name}.{parameter} has {most} levels in one channel, more than '
            f'{quantizer.spec.num_bits} bits allow ({quantizer.num_levels})'
        )
    return quantizer.spec.num_bits, most


def _most_levels(codes: Tensor) -> int:
    """Return the highest number of distinct codes in a row.

    Args:
        codes: (C, N), not negative.
    """
    size = int(codes.max()) + 1
    if size > MARKED_LEVELS:
        steps = codes.sort(dim=1).values.diff(dim=1)
        return int((steps > 0).sum(dim=1).max()) + 1
    # Marking a code's place is much faster than sorting.
    seen = torch.zeros(
        codes.shape[0], size, dtype=torch.uint8, device=codes.device
    )
    seen.scatter_(1, codes.to(torch.int64), 1)
    return int(seen.sum(dim=1).max())
