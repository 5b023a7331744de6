"""What a choice of bits is reported as, and the files that it writes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from taskptq.analysis.mixed_precision.cost import (
    BitOperations,
    MacsAbove,
    Problem,
    WeightBytes,
    cost_of,
)
from taskptq.analysis.mixed_precision.front import Front, FrontPoint
from taskptq.analysis.mixed_precision.plot import plot_front
from taskptq.analysis.mixed_precision.recipe_file import recipe_text
from taskptq.analysis.mixed_precision.settings import MixedPrecisionConfig
from taskptq.analysis.mixed_precision.units import Bits, Key
from taskptq.analysis.mixed_precision.verify import (
    disagreement_allowed,
    loss_allowed,
)
from taskptq.analysis.sensitivity.record import SensitivityReport
from taskptq.engine.builder import to_plain
from taskptq.engine.latency import TABLE_FILE
from taskptq.engine.precision_search import Trial
from taskptq.engine.recipe import Recipe

__all__ = ['choice_report', 'sentence_of', 'write_choice']

PARTS = ('qconfig', 'reconstruction', 'loss', 'rewrites')


def choice_report(
    front: Front,
    chosen: Trial,
    *,
    trials: Sequence[Trial],
    config: MixedPrecisionConfig,
    sensitivity: SensitivityReport,
) -> dict[str, Any]:
    """Return the report of a choice, plain types.

    Args:
        front: What was chosen from.
        chosen: What stays.
        trials: Everything that was measured, the recipe's own choice first.
        config: Settings.
        sensitivity: Where the estimates are from.
    """
    return {
        'keep': config.keep,
        'allowed': loss_allowed(config.keep),
        **chosen.to_dict(),
        'costs': costs_of(front, chosen.point),
        'changes': [
            change_of(front.problem, key, bits)
            for key, bits in chosen.changes.items()
        ],
        'settings': to_plain(chosen.settings),
        'front': front.to_dict(),
        'tried': [trial.to_dict() for trial in trials],
        'estimator': sensitivity.estimator,
        'num_images': sensitivity.num_images,
    }


def costs_of(front: Front, point: FrontPoint) -> dict[str, float]:
    """Return what a choice costs in every unit, measured time only if known.

    Bytes are absolute; latency is in the unit of its budget.
    """
    costs = [BitOperations(), WeightBytes(), MacsAbove()]
    costs += [
        limit.cost for limit in front.limits if limit.cost.name == 'latency'
    ]
    return {
        cost.name: cost_of(front.problem, cost, point.choice) for cost in costs
    }


def change_of(problem: Problem, key: Key, bits: Bits) -> dict[str, Any]:
    """Return one change: from which bits to which, gain and share of work."""
    unit = problem.units[key]
    macs = sum(joint.macs for joint in problem.readers[key])
    return {
        'layer': unit.layer,
        'point': unit.point,
        'from': unit.num_bits,
        'to': bits,
        'loss_before': unit.losses[unit.num_bits],
        'loss_after': unit.losses[bits],
        'share_of_macs': macs / max(problem.macs, 1),
    }


def sentence_of(report: Mapping[str, Any]) -> str:
    """Say what was chosen and whether it holds.

    Args:
        report: With ``final_loss`` and ``verified``.
    """
    changed = len(report['changes'])
    what = (
        f'{changed} tensors have other bits than the recipe names, '
        f'{100 * report["costs"]["macs_above"]:.2f} % of multiply-accumulates '
        'run above them'
        if changed
        else 'all tensors keep the bits of the recipe'
    )
    for one in report.get('cures', ()):
        if one['kept']:
            what += f', {one["points"]} points are on the grids of a cure'
    if report.get('rounding', 'nearest') != 'nearest':
        what += f', weights are rounded by {report["rounding"]}'
    limit = (
        f'{report["allowed"]:.3g}, the estimate for '
        f'{100 * report["keep"]:g} % of the score'
    )
    if report['verified']:
        holds = f'within {limit}'
    elif report['final_loss'] > report['named_loss']:
        holds = (
            f'which is worse, and above {limit}: calibrate on more images, or '
            'name a method that chooses nothing, such as w8a8_mse'
        )
    else:
        holds = (
            'the best that the budget and the candidates allow, but above '
            f'{limit}'
        )
    return (
        f'Mixed precision: {what}; the output loss is '
        f'{report["final_loss"]:.3g} ({report["named_loss"]:.3g} before), '
        f'{holds}{_disagreement_of(report)}'
    )


def _disagreement_of(report: Mapping[str, Any]) -> str:
    """Say which share of the predictions changed, if it was measured."""
    if 'final_disagreement' not in report:
        return ''
    shares = (
        report['final_disagreement'],
        report['named_disagreement'],
        disagreement_allowed(report['keep']),
    )
    final, named, allowed = (f'{100 * share:.3g} %' for share in shares)
    return (
        f'; {final} of the predictions changed ({named} before, {allowed} '
        'allowed), which the output loss includes'
    )


def write_choice(
    report: Mapping[str, Any], *, recipe: Recipe, work_dir: Path
) -> None:
    """Write ``mixed_precision.json`` and ``.png``, and ``chosen_recipe.py``.

    A budget of latency also leaves ``latency_table.json``.

    Args:
        report: From ``Choice.conclude``.
        recipe: The chosen recipe.
        work_dir: Folder.
    """
    text = json.dumps(report, indent=1) + '\n'
    if table := report.get('latency_table'):
        times = json.dumps(table, indent=1) + '\n'
        (work_dir / TABLE_FILE).write_text(times, encoding='utf-8')
    (work_dir / 'mixed_precision.json').write_text(text, encoding='utf-8')
    if 'front' in report and find_spec('matplotlib') is not None:
        plot_front(report, work_dir / 'mixed_precision.png')
    parts = {key: recipe.to_dict()[key] for key in PARTS}
    written = recipe_text(
        parts,
        added={key: len(own) for key, own in report['settings'].items()},
        notes=_notes(report['changes']),
        title='Chosen by mixed_precision; edit it and pass it as a recipe.',
    )
    (work_dir / 'chosen_recipe.py').write_text(written, encoding='utf-8')


def _notes(changes: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return what the changes of each layer gain."""
    layers: dict[str, list[Mapping[str, Any]]] = {}
    for change in changes:
        layers.setdefault(change['layer'], []).append(change)
    return {
        layer: (
            f'loss {sum(c["loss_before"] for c in own):.2g} -> '
            f'{sum(c["loss_after"] for c in own):.2g}, '
            f'{100 * max(c["share_of_macs"] for c in own):.2g} % of '
            'multiply-accumulates'
        )
        for layer, own in layers.items()
    }
