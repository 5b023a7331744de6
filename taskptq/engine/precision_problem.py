"""What a choice of bits is made from: sensitivities, products, edges."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from taskptq.analysis.mixed_precision.cost import Problem, build_problem
from taskptq.analysis.mixed_precision.operands import trace_operands
from taskptq.analysis.mixed_precision.settings import MixedPrecisionConfig
from taskptq.analysis.mixed_precision.units import group_units
from taskptq.analysis.sensitivity.gradient import (
    NotDifferentiableError,
    estimate_losses,
)
from taskptq.analysis.sensitivity.measured import measure_losses
from taskptq.analysis.sensitivity.record import (
    PointSensitivity,
    SensitivityReport,
)
from taskptq.calibration.batches import batch_length
from taskptq.core import AffineQuantizer
from taskptq.core.distributed import gathered
from taskptq.core.progress import Progress
from taskptq.core.switches import quantizers
from taskptq.modules.base import quant_modules
from taskptq.modules.products import QuantProducts
from taskptq.prepare import SwapReport
from taskptq.prepare.swap import EDGE_LAYER

__all__ = [
    'NOT_MEASURABLE',
    'Calibrated',
    'find_problem',
    'find_sensitivities',
    'on_all_ranks',
]

logger = logging.getLogger('taskptq')

# Images for losses that are measured one at a time.
MEASURED_IMAGES = 4
# What keeps a model's outputs from being compared: adapters of classes read
# batches as mmengine's loaders give them, and users may have others.
NOT_MEASURABLE = (
    AttributeError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """A calibrated model, and what it was calibrated with.

    Args:
        model: Prepared and calibrated.
        batches: All calibration batches of this rank.
        forward: Runs a model on one batch.
        adapter: The model's adapter.
        swapped: Report of the swap; its rows get the chosen bits.
        covering: Indices of batches that together call every layer.
    """

    model: nn.Module
    batches: Sequence[Any]
    forward: Any
    adapter: Any
    swapped: SwapReport
    covering: Sequence[int]

    @property
    def edges(self) -> frozenset[str]:
        """First and last layers."""
        return frozenset(
            row.name for row in self.swapped.rows if row.reason == EDGE_LAYER
        )


@contextmanager
def on_all_ranks() -> Iterator[None]:
    """Let a failure of one rank be that of all, which choose together."""
    reason, raised = '', None
    try:
        yield
    except NOT_MEASURABLE as error:
        reason = str(error) or type(error).__name__
        raised = error
    reasons = [one for one in gathered(reason) if one]
    if reasons:
        raise ValueError(reasons[0]) from raised


def _averaged(
    points: Sequence[PointSensitivity],
) -> list[PointSensitivity]:
    """Return the means over all ranks of the points that all know."""
    shards = gathered({one.name: one.losses for one in points})
    known = set.intersection(*(set(shard) for shard in shards))
    return [
        replace(
            one,
            losses={
                bits: sum(shard[one.name][bits] for shard in shards)
                / len(shards)
                for bits in one.losses
            },
        )
        for one in points
        if one.name in known
    ]


def _with_own_bits(
    points: Sequence[PointSensitivity], model: nn.Module
) -> list[PointSensitivity]:
    """Leave points on other than uniform grids their bits alone.

    The losses at other bits are those of uniform grids.
    """
    own = dict(quantizers(model))
    return [
        one
        if isinstance(own.get(one.name), AffineQuantizer)
        else replace(
            one,
            losses={
                bits: loss
                for bits, loss in one.losses.items()
                if bits == str(one.num_bits)
            },
        )
        for one in points
    ]


def find_sensitivities(
    calibrated: Calibrated,
    batches: Sequence[Any],
    config: MixedPrecisionConfig,
    *,
    seed: int,
    rounded: Mapping[str, Tensor] | None = None,
) -> SensitivityReport:
    """Estimate from gradients; measure one by one where there are none.

    Args:
        calibrated: Model and data.
        batches: The images that are seen.
        config: Settings.
        seed: Seed of the estimate.
        rounded: See ``estimate_losses``.
    """
    bits = [bits for bits in config.candidates if not isinstance(bits, str)]
    settings = {
        'forward': calibrated.forward,
        'adapter': calibrated.adapter,
        'candidates': bits or (8,),
    }
    try:
        total = (batch_length(batches[0]) or 1) * len(batches)
        with Progress('sensitivities', total=total) as progress:
            return estimate_losses(
                calibrated.model,
                batches,
                seed=seed,
                rounded=rounded,
                advance=progress.advance,
                **settings,
            )
    except NotDifferentiableError as error:
        logger.warning('Tensors are measured one at a time, since %s', error)
    return measure_losses(
        calibrated.model, batches, num_images=MEASURED_IMAGES, **settings
    )


def find_problem(
    calibrated: Calibrated,
    found: SensitivityReport,
    config: MixedPrecisionConfig,
    *,
    weight_share: float,
    rounded: Collection[str] = (),
) -> Problem:
    """Put units and products together, the same on all ranks.

    Args:
        calibrated: Model and data.
        found: Sensitivities of this rank.
        config: Settings.
        weight_share: Part of the losses of weights that will remain.
        rounded: Weights of which ``found`` knows it, see ``group_units``.
    """
    units = group_units(
        _with_own_bits(_averaged(found.points), calibrated.model),
        candidates=config.candidates,
        only=config.points,
        edges=calibrated.edges,
        fixed={
            name
            for name, module in quant_modules(calibrated.model)
            if isinstance(module, QuantProducts)
        },
        weight_share=weight_share,
        rounded=rounded if found.estimator == 'gradient' else (),
    )
    products = trace_operands(
        calibrated.model,
        [calibrated.batches[i] for i in calibrated.covering],
        forward=calibrated.forward,
    )
    # Images of other sizes would make other ranks choose otherwise.
    products = gathered(products)[0]
    return build_problem(units, products, edges=calibrated.edges)
