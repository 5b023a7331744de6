"""Choose the bits of each tensor after calibration, and verify the choice."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from torch import Tensor, nn

from taskptq.analysis.mixed_precision.front import find_front
from taskptq.analysis.mixed_precision.settings import MixedPrecisionConfig
from taskptq.analysis.mixed_precision.verify import (
    Measured,
    Reference,
    loss_allowed,
)
from taskptq.analysis.sensitivity.points import head_batches
from taskptq.analysis.sensitivity.record import SensitivityReport
from taskptq.engine.builder import to_plain
from taskptq.engine.contexts import seeded
from taskptq.engine.latency import with_latency
from taskptq.engine.mixed_precision_report import (
    choice_report,
    sentence_of,
    write_choice,
)
from taskptq.engine.precision_cures import Cured, cure
from taskptq.engine.precision_problem import (
    NOT_MEASURABLE,
    Calibrated,
    find_problem,
    find_sensitivities,
    on_all_ranks,
)
from taskptq.engine.precision_search import Search, Trial
from taskptq.engine.prediction_agreement import agreement_of
from taskptq.engine.recipe import Recipe
from taskptq.modules.base import quant_modules
from taskptq.prepare.swap import bits_of
from taskptq.reconstruction.config import ReconstructionConfig
from taskptq.reconstruction.input_ranges import input_ranges_tried
from taskptq.reconstruction.rounding.preview import preview_gptq

__all__ = ['Calibrated', 'Choice', 'choose_precision']

logger = logging.getLogger('taskptq')

# Part of the loss of weights rounded to nearest that GPTQ leaves, at most:
# 2 % on YOLOX-nano at 8 bits.
GPTQ_SHARE = 0.1
# Weights of fewer bits are worth a look at what GPTQ leaves of each.
PREVIEWED_BELOW = 7


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
            **_disagreement('final', measured),
            'agreement': _agreement(self._reference, measured),
        }
        report = {'sentence': sentence_of(report), **report}
        if is_main_process():
            write_choice(report, recipe=self.recipe, work_dir=work_dir)
        worse = not report['verified'] and measured.loss > report['named_loss']
        log = logger.warning if worse else logger.info
        log('%s', report['sentence'])
        return {'mixed_precision': report}


def choose_precision(calibrated: Calibrated, *, recipe: Recipe) -> Choice:
    """Choose bits as the recipe's ``mixed_precision`` says, in place.

    Where the outputs cannot be compared or differentiated, the recipe stays
    as it is, with a warning.

    Args:
        calibrated: Model and data.
        recipe: The recipe; without ``mixed_precision`` nothing happens.

    Raises:
        ValueError: If no choice keeps the budget, or a budget of latency has
            no table and nothing to measure one with.
    """
    config = recipe.mixed_precision
    if config is None:
        return Choice(recipe, {})
    start = time.perf_counter()
    timed = with_latency(calibrated, recipe)
    few = head_batches(calibrated.batches, num_images=config.num_images)
    with seeded(recipe.seed), _final_ranges(calibrated, recipe):
        try:
            with on_all_ranks():
                reference = Reference(
                    calibrated.model, few, adapter=calibrated.adapter
                )
            named = reference.measure(calibrated.model)
            allowed = loss_allowed(config.keep)
            cured = cure(
                calibrated,
                reference,
                recipe=timed,
                named=named,
                allowed=allowed,
            )
            fine = cured.measured.loss <= allowed
            if fine and set(config.budget) == {'macs_above'}:
                report = _kept(config, num_images=reference.num_images)
                report |= _cures(cured, named, report)
                return _timed(
                    replace(recipe, qconfig=cured.recipe.qconfig),
                    report,
                    reference,
                    start,
                )
            rounding = _reconstruction(cured.recipe, fine=fine)
            with on_all_ranks():
                rounded = _preview(
                    calibrated, few, config, reconstruction=rounding
                )
                found = find_sensitivities(
                    calibrated,
                    few,
                    config,
                    seed=recipe.seed,
                    rounded=rounded,
                )
        except NOT_MEASURABLE as error:
            return Choice(recipe, _skipped(error))
        result, report = _searched(
            calibrated,
            found,
            reference,
            cured=cured,
            reconstruction=rounding,
            rounded=set(rounded),
        )
        report |= _cures(cured, named, report)
    if timed is not recipe:
        # The file records what was asked for, the report what was measured.
        result = replace(result, mixed_precision=config)
        report['latency_table'] = timed.mixed_precision.latency_table
    return _timed(result, report, reference, start)


def _timed(
    recipe: Recipe, report: dict[str, Any], reference: Reference, start: float
) -> Choice:
    report['seconds'] = time.perf_counter() - start
    return Choice(recipe, report, reference=reference)


def _kept(config: MixedPrecisionConfig, *, num_images: int) -> dict[str, Any]:
    """Report that no bits have to change: nothing is cheaper."""
    return {
        'keep': config.keep,
        'allowed': loss_allowed(config.keep),
        'settings': {'overrides': [], 'keep_float': []},
        'changes': [],
        'num_images': num_images,
    }


def _searched(
    calibrated: Calibrated,
    found: SensitivityReport,
    reference: Reference,
    *,
    cured: Cured,
    reconstruction: dict[str, Any] | None,
    rounded: Collection[str],
) -> tuple[Recipe, dict[str, Any]]:
    """Find the cheapest choice that holds."""
    recipe, config = cured.recipe, cured.recipe.mixed_precision
    assert config is not None
    allowed = loss_allowed(config.keep)
    # Weights are rounded anew after the choice: measure it without them.
    later = reconstruction is not None
    problem = find_problem(
        calibrated,
        found,
        config,
        weight_share=GPTQ_SHARE if later else 1.0,
        rounded=rounded,
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
    if reconstruction is not None:
        settings = ReconstructionConfig.from_dict(reconstruction)
        report['rounding'] = settings.rounding
    result = replace(
        recipe, qconfig=chosen.qconfig, reconstruction=reconstruction
    )
    return result, report


def _reconstruction(recipe: Recipe, *, fine: bool) -> dict[str, Any] | None:
    """Return the reconstruction that follows the choice, if any.

    Args:
        recipe: The recipe; its own reconstruction comes first.
        fine: Whether the model keeps enough without, at the recipe's bits.
    """
    settings, config = recipe.reconstruction, recipe.mixed_precision
    assert config is not None
    weight = recipe.qconfig.points['weight']
    lowers = weight is not False and any(
        not isinstance(bits, str) and bits < weight['num_bits']
        for bits in config.candidates
    )
    if settings is None and (lowers or not fine):
        settings = config.reconstruction
    return None if settings is None else {'seed': recipe.seed, **settings}


@contextmanager
def _final_ranges(calibrated: Calibrated, recipe: Recipe) -> Iterator[None]:
    """Have the ranges that the reconstruction will set, for the choice."""
    settings = ReconstructionConfig.from_dict(recipe.reconstruction or {})
    with ExitStack() as stack:
        if settings.input_ranges and calibrated.adapter is not None:
            stack.enter_context(
                input_ranges_tried(
                    calibrated.model,
                    calibrated.batches,
                    adapter=calibrated.adapter,
                    seed=settings.seed,
                    optional=settings.position_optional,
                )
            )
        yield


def _preview(
    calibrated: Calibrated,
    batches: Sequence[Any],
    config: MixedPrecisionConfig,
    *,
    reconstruction: Mapping[str, Any] | None,
) -> dict[str, Tensor]:
    """Return what weights of few bits will be, if GPTQ rounds them."""
    if reconstruction is None:
        return {}
    settings = ReconstructionConfig.from_dict(reconstruction)
    if not (config.preview_rounding and settings.solves_codes):
        return {}
    return preview_gptq(
        calibrated.model,
        batches,
        forward=calibrated.forward,
        below=PREVIEWED_BELOW,
        damping=settings.gptq_damping,
    )


def _skipped(error: Exception) -> dict[str, Any]:
    reason = ' '.join(str(error).split()) or type(error).__name__
    logger.warning(
        'Mixed precision is left out, all tensors keep the bits of the '
        'recipe: %s',
        reason,
    )
    return {'skipped': reason}


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


def _cures(
    cured: Cured, named: Measured, report: dict[str, Any]
) -> dict[str, Any]:
    """Return how the recipe fared, and what the cures add to a report."""
    found: dict[str, Any] = {
        'named_loss': named.loss,
        **_disagreement('named', named),
    }
    if cured.tried:
        chosen = report['settings']
        overrides = [*to_plain(cured.overrides), *chosen['overrides']]
        found['cures'] = to_plain(cured.tried)
        found['settings'] = {**chosen, 'overrides': overrides}
    return found


def _disagreement(when: str, measured: Measured) -> dict[str, float]:
    share = measured.disagreement
    return {} if share is None else {f'{when}_disagreement': share}


def _agreement(reference: Reference, measured: Measured) -> dict[str, float]:
    return agreement_of(
        reference.adapter,
        reference.batches,
        target=reference.heads,
        quant=measured.heads,
    )
