"""Tensors that no 8-bit grid of their granularity can hold."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from taskptq.analysis.sensitivity.points import (
    head_batches,
    readers_of,
    small_batches,
)
from taskptq.analysis.sensitivity.roles import owner_of, point_of
from taskptq.analysis.sensitivity.sentences import cure_of_input
from taskptq.analysis.sensitivity.signals import Signals
from taskptq.analysis.sensitivity.survey import survey
from taskptq.modules.base import quant_modules

__all__ = ['Hopeless', 'find_hopeless', 'hopeless_warnings', 'warn_hopeless']

logger = logging.getLogger('taskptq')

# Fewer effective bits are hopeless. On YOLOX-nano with ranges of least error,
# the one tensor that costs a third of its AP has 3.5 and the next has 4.1; the
# worst layer input has 4.9 in a healthy SegFormer and in a healthy RetinaNet.
LEAST_EFFECTIVE_BITS = 3.75
# Recipes with fewer bits expect noise, and learn around it.
FROM_BITS = 8
MOST_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class Hopeless:
    """One tensor that its grid cannot hold.

    Args:
        name: Qualified name of the quantizer.
        num_bits: Bits of its grid.
        signals: What its tensor looks like.
        cure: Setting of the recipe that helps.
    """

    name: str
    num_bits: int
    signals: Signals
    cure: str


def find_hopeless(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Callable[[nn.Module, Any], Any],
) -> list[Hopeless]:
    """Run one image through a float model and look for hopeless tensors.

    Args:
        model: Prepared and calibrated.
        batches: Collated batches; only the first image is used.
        forward: Runs the model on one batch.

    Returns:
        The inputs of layers and operands of attentions whose reader gets
        fewer than ``LEAST_EFFECTIVE_BITS`` from 8 bits or more; the worst
        first.
    """
    image = head_batches(small_batches(batches, size=1), num_images=1)
    layers = dict(quant_modules(model))
    readers = readers_of(model)
    found = []
    for name, seen in survey(model, image, forward=forward).items():
        signals = seen.signals(readers.get(name))
        spec = seen.quantizer.spec
        if (
            spec.num_bits >= FROM_BITS
            and point_of(name) != 'softmax'
            and signals.effective_bits < LEAST_EFFECTIVE_BITS
        ):
            cure = cure_of_input(
                owner_of(name),
                layers.get(owner_of(name)),
                point=point_of(name),
                per_channel=spec.ch_axis is not None,
            )
            found.append(
                Hopeless(
                    name=name,
                    num_bits=spec.num_bits,
                    signals=signals,
                    cure=cure,
                )
            )
    return sorted(found, key=lambda one: one.signals.effective_bits)


def warn_hopeless(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    forward: Callable[[nn.Module, Any], Any],
) -> list[str]:
    """Log one warning if tensors are hopeless; draws no random numbers.

    Args:
        model: Prepared and calibrated.
        batches: Collated batches; only the first image is used.
        forward: Runs the model on one batch.

    Returns:
        The warning in a list, or an empty list.
    """
    devices = {p.device for p in model.parameters() if p.is_cuda}
    with torch.random.fork_rng(devices=devices):
        found = find_hopeless(model, batches, forward=forward)
    texts = hopeless_warnings(found)
    for text in texts:
        logger.warning(text)
    return texts


def hopeless_warnings(found: Sequence[Hopeless]) -> list[str]:
    """Return one warning that names the worst tensors, or none."""
    if not found:
        return []
    named = '; '.join(
        f'{one.name} ({one.signals.effective_bits:.1f} of {one.num_bits} bits '
        f'are effective, its peak is {one.signals.peak_to_std:.0f} standard '
        f'deviations; cure: {one.cure})'
        for one in found[:MOST_NAMED]
    )
    more = len(found) - MOST_NAMED
    rest = f'; and {more} more' if more > 0 else ''
    return [
        f'{len(found)} tensor{"s" if len(found) > 1 else ""} cannot be held '
        f'by the grid and will cost accuracy: {named}{rest}. See all with: '
        'taskptq sensitivity'
    ]
