"""Keep the entropy-coded codes of weights within their bits in training."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from taskptq.core import LearnedRounding
from taskptq.core.base_quantizer import CodedQuantizer
from taskptq.core.entropy import code_counts, code_lengths, coded_bits
from taskptq.core.soft_counter import code_slopes
from taskptq.modules.base import QuantModule

__all__ = ['CodedPart', 'RateTerm', 'coded_parts']

logger = logging.getLogger('taskptq')

# Steps between counts of all codes.
COUNT_EVERY = 5
# The first price of a bit, as the share of the loss's gradient that it adds.
FIRST_SHARE = 0.02
# By how much one count changes the logarithm of the price, for each 1 % that
# codes are above their bits, and at most.
REACTION, MOST = 0.1, 0.3
# Halvings of the price that makes the final codes fit, and its upper end in
# squared steps for one bit.
ROUNDS, HIGHEST_PRICE = 24, 64.0
# How many steps a code moves at most.
SWEEPS = 8


@dataclass(frozen=True)
class CodedPart:
    """A weight in training whose coded size is limited.

    Args:
        rounding: Its rounding.
        quantizer: Its quantizer, with ``max_bits``.
    """

    rounding: LearnedRounding
    quantizer: CodedQuantizer

    @property
    def bounds(self) -> tuple[int, int]:
        """Lowest and highest code."""
        return self.quantizer.quant_min, self.quantizer.quant_max

    def codes(self) -> Tensor:
        """Return the codes as a file would have them, int32."""
        codes = self.rounding.codes()
        if self.quantizer.mask is None:
            return codes
        zero = self.quantizer.quantize(codes.new_zeros((), dtype=torch.float))
        return torch.where(self.quantizer.mask, codes, zero)


def coded_parts(module: QuantModule) -> Iterator[CodedPart]:
    """Yield the layer's weights in training that have ``max_bits``."""
    for parameter, rounding in module.roundings.items():
        quantizer = module.weight_quantizer_of(parameter)
        if quantizer is not None and quantizer.max_bits is not None:
            yield CodedPart(rounding, quantizer)


class RateTerm:
    """The price of bits, ``loss + price x bits``, at a limit of all bits.

    The gradient of bits is that of the differentiable counter
    (:func:`~taskptq.core.soft_counter.code_slopes`). The price rises while
    codes take more bits than allowed, and falls otherwise; bits may move
    between the weights.

    Args:
        parts: Weights that train together, at least one.
    """

    def __init__(self, parts: Sequence[CodedPart]) -> None:
        self.parts = list(parts)
        limits = [part.quantizer.max_bits for part in self.parts]
        self.limit = sum(limit for limit in limits if limit is not None)
        self.price: float | None = None
        self.pulls: list[Tensor] = []

    @torch.no_grad()
    def add_gradient(self, step: int) -> None:
        """Add the gradient of the price to that of the loss.

        Args:
            step: Number of the step, from 0.
        """
        if step % COUNT_EVERY == 0:
            self._count()
        if self.price is None:
            self.price = self._first_price()
        for part, pull in zip(self.parts, self.pulls, strict=True):
            part.rounding.add_code_gradient(self.price * pull)

    def _count(self) -> None:
        """Look up slopes at the current codes, and adapt the price."""
        total = 0.0
        self.pulls = []
        for part in self.parts:
            codes = part.codes()
            counts = code_counts(codes, bounds=part.bounds)
            total += coded_bits(counts)
            slopes = code_slopes(counts).to(part.rounding.alpha)
            self.pulls.append(slopes[(codes - part.bounds[0]).long()])
        if self.price is not None:
            change = REACTION * 100 * (total / self.limit - 1)
            self.price *= math.exp(max(-MOST, min(MOST, change)))

    def _first_price(self) -> float:
        loss = bits = 0.0
        for part, pull in zip(self.parts, self.pulls, strict=True):
            gradient = part.rounding.alpha.grad
            assert gradient is not None
            loss += float(gradient.abs().sum())
            bits += float(pull.abs().sum())
        return FIRST_SHARE * loss / bits if bits else 0.0

    @torch.no_grad()
    def fit(self) -> None:
        """Make the trained codes fit into the limit.

        A code moves one step towards 0 where this saves more than it costs
        in squared error, at the lowest price (by bisection) that makes all
        of them fit; again, if one step is not enough.
        """
        codes = [part.codes() for part in self.parts]
        start = bits = self._bits(codes)
        for _ in range(SWEEPS):
            if bits <= self.limit:
                break
            codes = self._fitted(codes)
            bits = self._bits(codes)
        for part, final in zip(self.parts, codes, strict=True):
            part.rounding.lean_towards(final)
        logger.log(
            logging.INFO if bits <= self.limit else logging.WARNING,
            'codes take %d bytes, %d are allowed; %d before the last moved',
            math.ceil(bits / 8),
            int(self.limit // 8),
            math.ceil(start / 8),
        )

    def _fitted(self, codes: Sequence[Tensor]) -> list[Tensor]:
        low, high = 0.0, HIGHEST_PRICE
        best = self._cheaper(codes, price=high)
        for _ in range(ROUNDS):
            middle = (low + high) / 2
            moved = self._cheaper(codes, price=middle)
            if self._bits(moved) > self.limit:
                low = middle
            else:
                high, best = middle, moved
        return best

    def _bits(self, codes: Sequence[Tensor]) -> float:
        return sum(
            coded_bits(code_counts(one, bounds=part.bounds))
            for part, one in zip(self.parts, codes, strict=True)
        )

    def _cheaper(
        self, codes: Sequence[Tensor], *, price: float
    ) -> list[Tensor]:
        """Return codes, or their neighbours towards 0 if those cost less."""
        return [
            _cheaper_codes(part, own, price=price)
            for part, own in zip(self.parts, codes, strict=True)
        ]


def _cheaper_codes(part: CodedPart, codes: Tensor, *, price: float) -> Tensor:
    """Weigh squared errors in steps against bits."""
    lengths = code_lengths(code_counts(codes, bounds=part.bounds))
    position = part.rounding.position()
    zero = part.rounding.zero_point.to(codes.dtype)
    nearer = codes - (codes - zero).sign()
    totals = [
        (position - one).square()
        + price * lengths[(one - part.bounds[0]).long()].to(position)
        for one in (codes, nearer)
    ]
    return torch.where(totals[1] < totals[0], nearer, codes)
