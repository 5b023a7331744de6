"""What trains in a unit: roundings, scales and biases, while it lasts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from taskptq.core import LearnedRounding, Quantizer
from taskptq.core.switches import is_weight_quantizer, quantizers
from taskptq.modules.base import QuantModule
from taskptq.prepare.blocks import Unit
from taskptq.reconstruction.config import ReconstructionConfig
from taskptq.reconstruction.rounding.rate_term import CodedPart, coded_parts

# Of a bias, for its learning rate: one that is 0 may have to move as well.
LEAST_MAGNITUDE = 1e-3


@dataclass
class Learned:
    """The parameters in training.

    Args:
        roundings: Those of all weights.
        began: Their codes at first, int16; float weights have values.
        scales: Scales of activations; with ``latent_weights`` those of
            weights and biases as well.
        magnitudes: What scales the learning rate of each of these.
        coded: Weights whose coded size is limited.
    """

    roundings: list[LearnedRounding] = field(default_factory=list)
    began: list[Tensor] = field(default_factory=list)
    scales: list[nn.Parameter] = field(default_factory=list)
    magnitudes: list[float] = field(default_factory=list)
    coded: list[CodedPart] = field(default_factory=list)

    def parameters(self) -> list[nn.Parameter]:
        """Return all of them."""
        return [rounding.alpha for rounding in self.roundings] + self.scales

    def settled(self) -> float:
        """Return the share of roundings with |h - 0.5| > 0.49."""
        total = sum(r.alpha.numel() for r in self.roundings)
        if not total:
            return math.nan
        done = torch.stack([r.settled() for r in self.roundings]).sum()
        return float(done) / total

    @torch.no_grad()
    def flipped(self) -> float:
        """Return the share of weights on another code than they started on."""
        total = sum(r.alpha.numel() for r in self.roundings)
        if not total:
            return math.nan
        count = torch.stack(
            [
                (r.codes() != codes).sum()
                for r, codes in zip(self.roundings, self.began, strict=True)
            ]
        ).sum()
        return float(count) / total


@contextmanager
def learning(unit: Unit, config: ReconstructionConfig) -> Iterator[Learned]:
    """Attach learned parameters; on exit, fix them and round hard."""
    flags = [(p, p.requires_grad) for p in unit.module.parameters()]
    for parameter, _ in flags:
        parameter.requires_grad_(False)
    learned = _attach(unit, config)
    try:
        yield learned
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for scale in learned.scales:
            scale.requires_grad_(False)
            scale.grad = None
        for _, module in unit.layers():
            module.finish_rounding()


def _attach(unit: Unit, config: ReconstructionConfig) -> Learned:
    learned = Learned()
    if config.rounding == 'adaround':
        for _, module in unit.layers():
            found = _start_rounding(module, latent=config.latent_weights)
            for rounding in found:
                rounding.straight_through = config.rounds_hard
            learned.roundings.extend(found)
            learned.began.extend(_compact(r.codes()) for r in found)
            learned.coded.extend(coded_parts(module))
            if config.latent_weights:
                _attach_others(module, learned)
    if config.learn_scales:
        for name, quantizer in quantizers(unit.module):
            owner = unit.qualified(name.rpartition('.')[0])
            if is_weight_quantizer(name) or not unit.includes(owner):
                continue
            factor = _coarseness(quantizer) if config.latent_weights else 1.0
            for parameter in quantizer.learnable():
                learned.scales.append(parameter)
                size = quantizer.magnitude_of(parameter)
                learned.magnitudes.append(factor * size)
    for scale in learned.scales:
        scale.requires_grad_(True)
    return learned


def _compact(codes: Tensor) -> Tensor:
    """Return codes as int16, which holds 8-bit ones, signed or not."""
    return codes if codes.is_floating_point() else codes.to(torch.int16)


def _coarseness(quantizer: Quantizer) -> float:
    """Return 1 at 8 bits and 4 at 4 bits: fewer codes, larger steps.

    A share p of a scale moves the end of the grid by p times the number of
    codes, so that what is a careful step at 8 bits is none at 4. LSQ (Esser
    et al., ICLR 2020, section 2.2) balances by the root as well.
    """
    return float((255 / (quantizer.quant_max - quantizer.quant_min)) ** 0.5)


def _attach_others(module: QuantModule, learned: Learned) -> None:
    """Train the scales and biases of weights that train themselves."""
    for parameter, rounding in module.roundings.items():
        bias = module.start_bias(parameter)
        for value in (rounding.scale, bias):
            if isinstance(value, nn.Parameter):
                learned.scales.append(value)
                size = float(value.detach().abs().mean())
                learned.magnitudes.append(max(size, LEAST_MAGNITUDE))


def _start_rounding(
    module: QuantModule, *, latent: bool
) -> list[LearnedRounding]:
    """Attach roundings; start from the codes of an earlier phase, if any."""
    earlier = {name: module.codes(name) for name in module.rounded_parameters}
    roundings = module.start_rounding(latent=latent)
    for name, codes in earlier.items():
        if name in roundings:
            roundings[name].lean_towards(codes)
    return list(roundings.values())
