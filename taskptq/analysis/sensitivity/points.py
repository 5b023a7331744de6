"""Put facts, signals and losses together into records."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from taskptq.analysis.sensitivity.record import PointSensitivity
from taskptq.analysis.sensitivity.signals import reading
from taskptq.analysis.sensitivity.survey import TensorSurvey
from taskptq.analysis.sensitivity.trace import PointFacts
from taskptq.calibration.batches import BatchParts, batch_length
from taskptq.core import Quantizer
from taskptq.modules.base import quant_modules

__all__ = ['assemble', 'head_batches', 'readers_of', 'small_batches']


def assemble(
    facts: Mapping[str, PointFacts],
    seen: Mapping[str, TensorSurvey],
    losses: Mapping[str, Mapping[int, float]],
    *,
    quantizers: Mapping[str, Quantizer],
    readers: Mapping[str, Tensor],
) -> tuple[PointSensitivity, ...]:
    """Return the record of every quantizer that was reached.

    Args:
        facts: Structure, by quantizer.
        seen: Surveys, by quantizer.
        losses: Output losses by quantizer and bits.
        quantizers: Calibrated quantizers, by name.
        readers: See :func:`readers_of`.
    """
    return tuple(
        PointSensitivity(
            **vars(fact),
            **vars(seen[name].signals(readers.get(name))),
            num_bits=quantizers[name].spec.num_bits,
            per_channel=quantizers[name].spec.ch_axis is not None,
            losses={str(bits): one for bits, one in losses[name].items()},
        )
        for name, fact in facts.items()
        if name in losses and name in seen
    )


def readers_of(model: nn.Module) -> dict[str, Tensor]:
    """Return how the owner of each input quantizer reads its channels.

    Args:
        model: Prepared.

    Returns:
        See ``signals.reading``, by quantizer; layers that quantize what
        several others read are missing.
    """
    found = {}
    for name, module in quant_modules(model):
        read = reading(module)
        if read is not None and hasattr(module, 'input_quantizer'):
            found[f'{name}.input_quantizer'] = read
    return found


def small_batches(batches: Iterable[Any], *, size: int) -> Iterator[Any]:
    """Yield batches in parts, to bound the memory of graphs.

    Only what mm models or single tensors look like is split: in positional
    arguments, nothing tells images from arguments.

    Args:
        batches: Collated batches, read once.
        size: Most images of a part.
    """
    for batch in batches:
        is_known = isinstance(batch, Tensor) or (
            isinstance(batch, dict) and 'inputs' in batch
        )
        if is_known and batch_length(batch) > size:
            yield from BatchParts([batch], size)
        else:
            yield batch


def head_batches(batches: Iterable[Any], *, num_images: int) -> list[Any]:
    """Return the first batches that hold some number of images."""
    found: list[Any] = []
    images = 0
    for batch in batches:
        found.append(batch)
        images += batch_length(batch) or 1
        if images >= num_images:
            break
    return found
