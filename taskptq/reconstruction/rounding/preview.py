"""Weights as GPTQ would round them, of a model that stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.calibration.calibrate import calibration_mode
from taskptq.core import float_only
from taskptq.modules.base import QuantModule, quant_modules
from taskptq.reconstruction.rounding.gptq import HessianAccumulator, gptq_layer
from taskptq.reconstruction.rounding.layer_inputs import (
    by_rows,
    listening,
    matmul_of,
)

__all__ = ['preview_gptq']

# Layers are taken together until their moments fill this much memory.
MAX_BYTES = 1 << 30
# Positions of an image that count: moments of more hardly differ.
MAX_POSITIONS = 1024


@dataclass(kw_only=True)
class _Layer:
    """A layer, the weights of it that are rounded, and its moments.

    Args:
        module: The counterpart.
        slots: Parameter -> qualified name of its quantizer.
        moments: By operand, see ``layer_inputs.Receiver``.
    """

    module: QuantModule
    slots: dict[str, str]
    moments: dict[str, HessianAccumulator] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Memory of its moments."""
        total = 0
        for parameter in self.slots:
            weight: Tensor = getattr(self.module, parameter)
            inputs = weight[0].numel()
            total += 4 * inputs**2 * int(getattr(self.module, 'groups', 1))
        return total

    def add(self, key: str, x: Tensor) -> None:
        """Add one input of one operand."""
        if key not in self.moments:
            self.moments[key] = HessianAccumulator(
                matmul_of(self.module),
                dtype=torch.float32,
                max_positions=MAX_POSITIONS,
            )
        self.moments[key].add(x)

    def rounded(self, *, damping: float) -> Iterator[tuple[str, Tensor]]:
        """Yield the name of each quantizer and the rounded weight."""
        for parameter, name in self.slots.items():
            found = by_rows(self.moments, self.module, parameter)
            quantizer = self.module.weight_quantizer_of(parameter)
            if not found or quantizer is None:
                continue
            codes = gptq_layer(
                self.module,
                parameter,
                [(rows, one.hessian().double()) for rows, one in found],
                damping=damping,
            )
            yield name, quantizer.masked(quantizer.dequantize(codes))


@torch.no_grad()
def preview_gptq(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    forward: Callable[[nn.Module, Any], Any],
    below: int = 8,
    damping: float = 0.01,
) -> dict[str, Tensor]:
    """Return what GPTQ makes of each weight on the float model's inputs.

    A reconstruction rounds later layers for the errors of earlier ones; this
    is what remains of each layer by itself. One pass over the batches, or
    more where the moments of all layers would take more than 1 GiB.

    Args:
        model: Swapped and calibrated, not frozen; it does not change.
        batches: Collated batches.
        forward: Runs the model on one batch.
        below: Weights of fewer bits than these.
        damping: See ``gptq_codes``.

    Returns:
        Qualified name of the weight quantizer -> weight on its grid, without
        layers that never ran or have no closed form.

    Raises:
        ValueError: If the inputs of a layer are not finite.
    """
    found: dict[str, Tensor] = {}
    for layers in _portions(_layers(model, below=below)):
        with ExitStack() as stack:
            stack.enter_context(calibration_mode(model))
            stack.enter_context(float_only(model))
            for one in layers:
                stack.enter_context(
                    listening(one.module, partial(_Layer.add, one))
                )
            for batch in batches:
                forward(model, batch)
        for one in layers:
            found.update(one.rounded(damping=damping))
            one.moments.clear()
    return found


def _layers(model: nn.Module, *, below: int) -> Iterator[_Layer]:
    """Yield the layers that have weights of few bits and a closed form."""
    for name, module in quant_modules(model):
        slots = {}
        for parameter, slot in module.active_slots():
            quantizer = module.weight_quantizer_of(parameter)
            if (
                quantizer is not None
                and quantizer.calibrated
                and quantizer.spec.num_bits < below
            ):
                slots[parameter] = f'{name}.{slot}'
        if module.closed_form and slots:
            yield _Layer(module=module, slots=slots)


def _portions(layers: Iterator[_Layer]) -> Iterator[list[_Layer]]:
    """Yield the layers in lists whose moments fit into memory together."""
    portion: list[_Layer] = []
    size = 0
    for layer in layers:
        if portion and size + layer.num_bytes > MAX_BYTES:
            yield portion
            portion, size = [], 0
        portion.append(layer)
        size += layer.num_bytes
    if portion:
        yield portion
