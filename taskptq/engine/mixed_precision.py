"""Choose the bits of each tensor after calibration, and verify the choice."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from torch import nn

from taskptq.analysis.mixed_precision.cost import Problem, build_problem
from taskptq.analysis.mixed_precision.front import find_front
from taskptq.analysis.mixed_precision.operands import trace_operands
from taskptq.analysis.mixed_precision.settings import MixedPrecisionConfig
from taskptq.analysis.mixed_precision.units import group_units
from taskptq.analysis.mixed_precision.verify import (
    Measured,
    Reference,
    loss_allowed,
)
from taskptq.analysis.sensitivity.gradient import (
    NotDifferentiableError,
    estimate_losses,
)
from taskptq.analysis.sensitivity.measured import measure_losses
from taskptq.analysis.sensitivity.points import head_batches
from taskptq.analysis.sensitivity.record import (
    PointSensitivity,
    SensitivityReport,
)
from taskptq.core.distributed import gathered
from taskptq.engine.contexts import seeded
from taskptq.engine.mixed_precision_report import (
    choice_report,
    sentence_of,
    write_choice,
)
from taskptq.engine.precision_search import Search, Trial
from taskptq.engine.prediction_agreement import agreement_of
from taskptq.engine.recipe import Recipe
from taskptq.modules.base import quant_modules
from taskptq.modules.products import QuantProducts
from taskptq.prepare import SwapReport
from taskptq.prepare.swap import EDGE_LAYER, bits_of
from taskptq.reconstruction.config import ReconstructionConfig

__all__ = ['Calibrated', 'Choice', 'choose_precision']

logger = logging.getLogger('taskptq')

# Part of the loss of weights rounded to nearest that GPTQ leaves, at most:
# 2 % on YOLOX-nano at 8 bits.
GPTQ_SHARE = 0.1
# Images for losses that are measured one at a time.
MEASURED_IMAGES = 4
# What keeps a model's outputs from being compared.
NOT_MEASURABLE = (
    NotImplementedError,
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


class Choice:
    """The chosen recipe, and the report that its freezing completes.

    Args:
        recipe: The recipe with what was chosen.
        report: So far; plain types.
        reference: Float outputs to compare with; None if they cannot be.
    """

    def __init__(
        self,
        recipe: Recipe,
        report: dict[str, Any],
        *,
        reference: Reference | None = None,
    ) -> None:
        self.recipe = recipe
        self.report = report
        self._reference = reference

    def conclude(self, model: nn.Module, *, work_dir: Path) -> dict[str, Any]:
        """Measure the frozen model, and write the report and the recipe.

        Args:
            model: Quantized model.
            work_dir: Folder of ``mixed_precision.json``, ``.png`` and
                ``chosen_recipe.py``.

        Returns:
            The report under ``mixed_precision``, plain types; empty if there
            was nothing to choose.
        """
        if self._reference is None:
            return {'mixed_precision': self.report} if self.report else {}
        measured = self._reference.measure(model)
        report = {
            **self.report,
            'final_loss': measured.loss,
            'verified': measured.loss <= self.report['allowed'],
            'agreement': _agreement(self._reference, measured),
        }
        report = {'sentence': sentence_of(report), **report}
        if is_main_process():
            write_choice(report, recipe=self.recipe, work_dir=work_dir)
        logger.info('%s', report['sentence'])
        return {'mixed_precision': report}


def choose_precision(calibrated: Calibrated, *, recipe: Recipe) -> Choice:
    """Choose bits as the recipe's ``mixed_precision`` says, in place.

    Where the outputs cannot be compared or differentiated, the recipe stays
    as it is, with a warning.

    Args:
        calibrated: Model and data.
        recipe: The recipe; without ``mixed_precision`` nothing happens.

    Raises:
        ValueError: If no choice keeps the budget.
    """
    config = recipe.mixed_precision
    if config is None:
        return Choice(recipe, {})
    start = time.perf_counter()
    few = head_batches(calibrated.batches, num_images=config.num_images)
    with seeded(recipe.seed):
        try:
            with _on_all_ranks():
                reference = Reference(
                    calibrated.model, few, adapter=calibrated.adapter
                )
            named = reference.measure(calibrated.model)
            fine = named.loss <= loss_allowed(config.keep)
            if fine and set(config.budget) == {'macs_above'}:
                report = _kept(config, named, num_images=reference.num_images)
                return _timed(recipe, report, reference, start)
            with _on_all_ranks():
                found = _sensitivities(
                    calibrated, few, config, seed=recipe.seed
                )
        except NOT_MEASURABLE as error:
            return Choice(recipe, _skipped(error))
        found.points = _averaged(found.points)
        result, report = _searched(
            calibrated, found, reference, recipe=recipe, named=named
        )
    return _timed(result, report, reference, start)


def _timed(
    recipe: Recipe, report: dict[str, Any], reference: Reference, start: float
) -> Choice:
    report['seconds'] = time.perf_counter() - start
    return Choice(recipe, report, reference=reference)


def _kept(
    config: MixedPrecisionConfig, named: Measured, *, num_images: int
) -> dict[str, Any]:
    """Report that nothing has to change: nothing is cheaper."""
    return {
        'keep': config.keep,
        'allowed': loss_allowed(config.keep),
        'named_loss': named.loss,
        'settings': {'overrides': [], 'keep_float': []},
        'changes': [],
        'num_images': num_images,
    }


def _searched(
    calibrated: Calibrated,
    found: SensitivityReport,
    reference: Reference,
    *,
    recipe: Recipe,
    named: Measured,
) -> tuple[Recipe, dict[str, Any]]:
    """Find the cheapest choice that holds."""
    config = recipe.mixed_precision
    assert config is not None
    allowed = loss_allowed(config.keep)
    reconstruction = recipe.reconstruction
    if reconstruction is None and named.loss > allowed:
        reconstruction = config.reconstruction
    if reconstruction is not None:
        reconstruction = {'seed': recipe.seed, **reconstruction}
    # Weights are rounded anew after the choice: measure it without them.
    later = reconstruction is not None
    problem = _problem(
        calibrated,
        found,
        config,
        weight_share=GPTQ_SHARE if later else 1.0,
    )
    front = find_front(problem, config)
    search = Search(
        model=calibrated.model,
        batches=calibrated.batches,
        forward=calibrated.forward,
        reference=reference,
        front=front,
        qconfig=recipe.qconfig,
        edges=calibrated.edges,
        weights=not later,
    )
    chosen = search.run(allowed)
    _update_rows(calibrated, chosen)
    report = choice_report(
        front,
        chosen,
        trials=search.trials,
        config=config,
        sensitivity=found,
    )
    report['named_loss'] = named.loss
    report['rounding'] = (
        'nearest'
        if reconstruction is None
        else ReconstructionConfig.from_dict(reconstruction).rounding
    )
    result = replace(
        recipe, qconfig=chosen.qconfig, reconstruction=reconstruction
    )
    return result, report


@contextmanager
def _on_all_ranks() -> Iterator[None]:
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


def _skipped(error: Exception) -> dict[str, Any]:
    reason = ' '.join(str(error).split()) or type(error).__name__
    logger.warning(
        'Mixed precision is left out, all tensors keep the bits of the '
        'recipe: %s',
        reason,
    )
    return {'skipped': reason}


def _sensitivities(
    calibrated: Calibrated,
    batches: Sequence[Any],
    config: MixedPrecisionConfig,
    *,
    seed: int,
) -> SensitivityReport:
    """Estimate from gradients; measure one by one where there are none."""
    bits = [bits for bits in config.candidates if not isinstance(bits, str)]
    settings = {
        'forward': calibrated.forward,
        'adapter': calibrated.adapter,
        'candidates': bits or (8,),
    }
    try:
        return estimate_losses(
            calibrated.model, batches, seed=seed, **settings
        )
    except NotDifferentiableError as error:
        logger.warning('Tensors are measured one at a time, since %s', error)
    return measure_losses(
        calibrated.model, batches, num_images=MEASURED_IMAGES, **settings
    )


def _problem(
    calibrated: Calibrated,
    found: SensitivityReport,
    config: MixedPrecisionConfig,
    *,
    weight_share: float,
) -> Problem:
    units = group_units(
        found.points,
        candidates=config.candidates,
        only=config.points,
        edges=calibrated.edges,
        fixed={
            name
            for name, module in quant_modules(calibrated.model)
            if isinstance(module, QuantProducts)
        },
        weight_share=weight_share,
    )
    products = trace_operands(
        calibrated.model,
        [calibrated.batches[i] for i in calibrated.covering],
        forward=calibrated.forward,
    )
    # Images of other sizes would make other ranks choose otherwise.
    products = gathered(products)[0]
    return build_problem(units, products, edges=calibrated.edges)


def _update_rows(calibrated: Calibrated, chosen: Trial) -> None:
    """Let the rows of the swap say which bits were chosen."""
    changed = {layer for layer, _ in chosen.changes}
    modules = dict(quant_modules(calibrated.model))
    none = dict.fromkeys(
        ('weight_bits', 'activation_bits', 'attention_bits', 'softmax_bits')
    )
    rows = calibrated.swapped.rows
    for number, row in enumerate(rows):
        if row.name not in changed:
            continue
        bits = bits_of(modules[row.name])
        reason = f'qconfig.keep_float {row.name!r}'
        fate = {} if bits else {'status': 'float', 'reason': reason}
        rows[number] = replace(row, **{**none, **bits, **fate})


def _agreement(reference: Reference, measured: Measured) -> dict[str, float]:
    return agreement_of(
        reference.adapter,
        reference.batches,
        target=reference.heads,
        quant=measured.heads,
    )
