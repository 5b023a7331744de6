"""How much the network's outputs depend on each position of a feature map.

Layers are fitted by second moments over positions, and most positions of a
dense model show background. Weighting them by the outputs' curvature lets
those count that the outputs depend on, as in the Kronecker factors of a
Gauss-Newton matrix (Martens and Grosse, ICML 2015).
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.calibration.calibrate import calibration_mode
from taskptq.core import float_only
from taskptq.core.distributed import gathered
from taskptq.modules.base import quant_modules
from taskptq.prepare.blocks import Unit
from taskptq.reconstruction.capture.nesting import flatten
from taskptq.reconstruction.network import NOT_TRAINABLE

logger = logging.getLogger('taskptq')

# Share of its weight that every position keeps.
FLOOR = 0.1


class PositionWeights:
    """Weights of the positions of all outputs, 1 on average.

    Attributes:
        maps: (layer, batch) -> call -> weights of its output.
        of_units: (unit's output, batch) -> call -> weights; an output's name
            is that of its unit, a colon and its number.
    """

    def __init__(self) -> None:
        self.maps: dict[tuple[str, int], dict[int, Tensor]] = defaultdict(dict)
        self.of_units: dict[tuple[str, int], dict[int, Tensor]] = defaultdict(
            dict
        )

    def of(self, layer: str, batch: int, call: int) -> Tensor | None:
        """Return the weights of one output, its shape without channels.

        Args:
            layer: Qualified name.
            batch: Number of the calibration batch.
            call: Number of the layer's call in that batch.
        """
        return self.maps.get((layer, batch), {}).get(call)

    def normalize(self) -> None:
        """Scale to a mean of 1 over all ranks, and mix in ``FLOOR``."""
        for found in (self.maps, self.of_units):
            _normalize(found)


def _normalize(found: dict[tuple[str, int], dict[int, Tensor]]) -> None:
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for (name, _), maps in found.items():
        for values in maps.values():
            sums[name][0] += float(values.sum())
            sums[name][1] += values.numel()
    ranks = gathered(dict(sums))
    for (name, _), maps in found.items():
        own = [rank[name] for rank in ranks if name in rank]
        total, count = (sum(part) for part in zip(*own, strict=True))
        mean = max(total / count, 1e-30)
        for call, values in maps.items():
            maps[call] = FLOOR + (1 - FLOOR) * values / mean


def find_position_weights(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    adapter: Any,
    seed: int,
    units: Sequence[Unit] = (),
    optional: bool = False,
) -> PositionWeights | None:
    """Run the float model forwards and backwards once over the batches.

    With J the Jacobian of the outputs z and h the curvature of the loss in
    them (``adapter.output_weights``), the gradient g of ``sum sqrt(h) e z``
    for random signs e has ``E[g^2] = diag(J^T h J)``. The weight of a
    position is the root of its mean over channels: the mean itself would let
    a few positions carry the whole fit.

    Args:
        model: Swapped model.
        batches: Calibration batches.
        adapter: The model's adapter.
        seed: Seed of the signs.
        units: Units whose outputs are to have weights as well.
        optional: Warn if the model has no outputs that can be compared and
            differentiated; without it, errors pass.

    Returns:
        The weights; None, on all ranks, if one of them warned.
    """
    found = PositionWeights()
    reason = ''
    try:
        _measure(found, model, batches, adapter, seed=seed, units=units)
    except NOT_TRAINABLE as error:
        if not optional:
            raise
        reason = ' '.join(str(error).split()) or type(error).__name__
    reasons = [one for one in gathered(reason) if one]
    if reasons:
        logger.warning('All positions are weighed the same: %s', reasons[0])
        return None
    found.normalize()
    return found


def _measure(
    found: PositionWeights,
    model: nn.Module,
    batches: Sequence[Any],
    adapter: Any,
    *,
    seed: int,
    units: Sequence[Unit],
) -> None:
    generator = torch.Generator().manual_seed(seed)
    with _without_parameters(model), float_only(model):
        for number, batch in enumerate(batches):
            with (
                _recording(model, found, number),
                _recording_units(units, found, number),
                torch.enable_grad(),
            ):
                heads = adapter.forward_heads(model, batch)
                _probe(heads, adapter, generator).backward()


def _probe(
    heads: dict[str, Tensor], adapter: Any, generator: torch.Generator
) -> Tensor:
    """Return ``sum sqrt(h) e z`` over all outputs that have a gradient."""
    detached = {name: head.detach() for name, head in heads.items()}
    weights = adapter.output_weights(detached)
    terms = []
    for name, weight in weights.items():
        head = heads[name]
        if not head.requires_grad:
            continue
        signs = torch.randint(2, head.shape, generator=generator) * 2.0 - 1
        root = weight.detach().clamp(min=0).sqrt()
        terms.append((head * (root * signs.to(head))).sum())
    if not terms:
        raise ValueError(
            'no output of the model has a gradient: leave out '
            'reconstruction.position_weights'
        )
    return torch.stack(terms).sum()


@contextmanager
def _without_parameters(model: nn.Module) -> Iterator[None]:
    """Take no gradients of parameters: only of activations."""
    flags = [(p, p.requires_grad) for p in model.parameters()]
    try:
        model.requires_grad_(False)
        with calibration_mode(model):
            yield
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)


@contextmanager
def _recording(
    model: nn.Module, found: PositionWeights, batch: int
) -> Iterator[None]:
    """Store squared gradients of the outputs of convolutions and linears."""
    known = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
    handles = [
        layer.register_forward_hook(_hook(found, name, batch))
        for name, layer in quant_modules(model)
        if isinstance(layer, known)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(
    found: PositionWeights, name: str, batch: int
) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    calls = 0

    def hook(layer: nn.Module, args: Any, output: Tensor) -> Tensor:
        nonlocal calls
        del args
        call, calls = calls, calls + 1
        axis = -1 if isinstance(layer, nn.Linear) else -3
        if not output.requires_grad:
            # Not a leaf, as an activation may work in place.
            output = output.detach().requires_grad_() * 1
        _store(output, axis, found.maps[name, batch], call)
        return output

    return hook


@contextmanager
def _recording_units(
    units: Sequence[Unit], found: PositionWeights, batch: int
) -> Iterator[None]:
    """Store those of units' outputs: images, or tokens."""
    handles = [
        unit.module.register_forward_hook(_unit_hook(found, unit.name, batch))
        for unit in units
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _unit_hook(
    found: PositionWeights, name: str, batch: int
) -> Callable[[nn.Module, Any, Any], None]:
    calls = 0

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal calls
        del module, args
        call, calls = calls, calls + 1
        for leaf, value in enumerate(flatten(output)[0]):
            if value.requires_grad:
                axis = -3 if value.dim() == 4 else -1
                key = (f'{name}:{leaf}', batch)
                _store(value, axis, found.of_units[key], call)

    return hook


def _store(
    output: Tensor, axis: int, maps: dict[int, Tensor], call: int
) -> None:
    """Store the gradient of an output when it comes."""

    def store(gradient: Tensor) -> None:
        squares = gradient.detach().float().square().mean(dim=axis)
        maps[call] = squares.sqrt()

    output.register_hook(store)
