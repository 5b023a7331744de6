"""Put facts, signals and losses together into records."""

from __future__ import annotations

from collections.abc import (
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from taskptq.analysis.sensitivity.grids import Rounder, candidate_grids
from taskptq.analysis.sensitivity.record import PointSensitivity
from taskptq.analysis.sensitivity.signals import reading
from taskptq.analysis.sensitivity.survey import (
    TensorSurvey,
    survey,
    survey_weights,
)
from taskptq.analysis.sensitivity.trace import PointFacts, trace_points
from taskptq.calibration.batches import BatchParts, batch_length
from taskptq.modules.base import quant_modules

__all__ = [
    'View',
    'head_batches',
    'readers_of',
    'small_batches',
    'view_points',
]


@dataclass(frozen=True, kw_only=True)
class View:
    """What a few images show of a model's quantizers.

    Args:
        facts: Structure, by quantizer.
        seen: Surveys of their tensors, by quantizer.
        readers: See :func:`readers_of`.
    """

    facts: Mapping[str, PointFacts]
    seen: Mapping[str, TensorSurvey]
    readers: Mapping[str, Tensor]

    def grids(
        self, name: str, *, candidates: Iterable[int]
    ) -> dict[int, Rounder]:
        """Return what rounds one tensor, at its own bits and others."""
        one = self.seen[name]
        own = one.quantizer.spec.num_bits
        return candidate_grids(
            one.quantizer, one, candidates=sorted({*candidates, own})
        )

    def points(
        self, losses: Mapping[str, Mapping[int, float]]
    ) -> tuple[PointSensitivity, ...]:
        """Return the records of all quantizers that have losses.

        Args:
            losses: Output losses by quantizer and bits.
        """
        return tuple(
            self._point(fact, losses[name])
            for name, fact in self.facts.items()
            if name in losses and name in self.seen
        )

    def _point(
        self, fact: PointFacts, losses: Mapping[int, float]
    ) -> PointSensitivity:
        one = self.seen[fact.name]
        spec = one.quantizer.spec
        return PointSensitivity(
            **vars(fact),
            **vars(one.signals(self.readers.get(fact.name))),
            num_bits=spec.num_bits,
            per_channel=spec.ch_axis is not None,
            losses={str(bits): loss for bits, loss in losses.items()},
        )


def view_points(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    forward: Callable[[nn.Module, Any], Any],
    adapter: Any,
) -> View:
    """Look at every quantizer of a calibrated model.

    Args:
        model: Prepared and calibrated.
        batches: A few collated batches.
        forward: Runs the model on one batch.
        adapter: The model's adapter.
    """
    seen = survey(model, batches, forward=forward)
    return View(
        facts=trace_points(model, batches[0], outputs=adapter.forward_heads),
        seen={**seen, **survey_weights(model)},
        readers=readers_of(model),
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
