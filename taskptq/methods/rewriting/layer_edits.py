"""Edits of single layers, verified where they act.

All groups are edited and verified in one pass: each reader's output is
compared with that of the float model and then replaced by it, so that a
wrong edit is seen where it is made and nowhere else.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.calibration.calibrate import calibration_mode
from taskptq.methods.rewriting.statistics import gather, open_attention
from taskptq.methods.rewriting.verified_rewrite import (
    CalibrationStats,
    RewriteEntry,
    RowEdit,
    relative_error,
)

logger = logging.getLogger('taskptq')


@dataclass(kw_only=True)
class LayerEdit:
    """Planned edits of a giver and its readers.

    Args:
        entry: Its entry in the report.
        readers: Modules whose outputs must stay, by name.
        edits: New values; no two plans share a parameter's rows.
        fallback: Edits to try instead if these change an output.
    """

    entry: RewriteEntry
    readers: Mapping[str, nn.Module]
    edits: list[RowEdit] = field(default_factory=list)
    fallback: LayerEdit | None = None

    @torch.no_grad()
    def apply(self) -> None:
        """Write the new values."""
        for edit in self.edits:
            edit.rows.copy_(edit.after)

    @torch.no_grad()
    def undo(self) -> None:
        """Write the old values, bit for bit."""
        for edit in self.edits:
            edit.rows.copy_(edit.before)


def apply_layer_edits(
    model: nn.Module,
    plans: Sequence[LayerEdit],
    stats: CalibrationStats,
    *,
    tolerance: float,
) -> list[LayerEdit]:
    """Write the edits; undo, or replace by their fallback, those that fail.

    Args:
        model: Float model, changed in place.
        plans: Edits. Those without any are ignored.
        stats: Calibration data; the first batch verifies.
        tolerance: Largest change of a reader's output, relative to its
            largest magnitude.

    Returns:
        The edits that stand; their entries say 'applied'.
    """
    waiting = [plan for plan in plans if plan.edits]
    standing: list[LayerEdit] = []
    expected: dict[str, list[Any]] = {}
    if waiting:
        expected = layer_outputs(model, _readers(waiting), stats)
    while waiting:
        for plan in waiting:
            plan.apply()
        errors = compare_outputs(model, _readers(waiting), stats, expected)
        failed = []
        for plan in waiting:
            error = max(errors.get(name, 0.0) for name in plan.readers)
            if error <= tolerance:
                plan.entry.status = 'applied'
                plan.entry.max_relative_error = error
                standing.append(plan)
                continue
            plan.undo()
            _report_failure(plan, error, tolerance)
            if plan.fallback is not None:
                failed.append(plan.fallback)
        waiting = failed
    return standing


def outcome(plan: LayerEdit) -> RewriteEntry:
    """Return the entry of a plan, or of the fallback that replaced it."""
    if plan.entry.status == 'undone' and plan.fallback is not None:
        return outcome(plan.fallback)
    return plan.entry


def _readers(plans: Sequence[LayerEdit]) -> dict[str, nn.Module]:
    return {
        name: module for plan in plans for name, module in plan.readers.items()
    }


def _report_failure(plan: LayerEdit, error: float, tolerance: float) -> None:
    plan.entry.status = 'undone'
    plan.entry.reason = (
        f'its output changed by {error:.2g}, more than the tolerance of '
        f'{tolerance:g}'
    )
    if plan.fallback is None:
        logger.warning(
            '%s: rewrite of its %s was undone: %s',
            plan.entry.name,
            plan.entry.part,
            plan.entry.reason,
        )


@contextmanager
def _hooked(
    readers: Mapping[str, nn.Module], hook: Any, model: nn.Module
) -> Iterator[None]:
    """Call ``hook(name, output)`` after each reader, in eval mode."""
    with ExitStack() as stack:
        for name, module in readers.items():
            handle = module.register_forward_hook(
                lambda _module, _args, output, name=name: hook(name, output)
            )
            stack.callback(handle.remove)
        stack.enter_context(calibration_mode(model))
        stack.enter_context(open_attention())
        yield


def layer_outputs(
    model: nn.Module,
    readers: Mapping[str, nn.Module],
    stats: CalibrationStats,
) -> dict[str, list[Any]]:
    """Return each reader's outputs on the first batch, call by call."""
    found: dict[str, list[Any]] = defaultdict(list)
    with _hooked(
        readers, lambda name, output: found[name].append(_copy(output)), model
    ):
        stats.forward(model, stats.batches[0])
    return found


def compare_outputs(
    model: nn.Module,
    readers: Mapping[str, nn.Module],
    stats: CalibrationStats,
    expected: Mapping[str, list[Any]],
) -> dict[str, float]:
    """Return the largest relative change of each reader's outputs."""
    calls: dict[str, int] = defaultdict(int)
    errors: dict[str, float] = {}

    def hook(name: str, output: Any) -> Any:
        before = expected[name][calls[name]]
        calls[name] += 1
        error = relative_error(_first(before), _first(output))
        errors[name] = max(errors.get(name, 0.0), error)
        return _copy(before)

    with _hooked(readers, hook, model):
        stats.forward(model, stats.batches[0])
    ranks = gather(errors)
    names = dict.fromkeys(name for rank in ranks for name in rank)
    return {
        name: max(rank[name] for rank in ranks if name in rank)
        for name in names
    }


def _first(output: Any) -> Tensor:
    """Return an attention's output without its attention weights."""
    first: Tensor = output if isinstance(output, Tensor) else output[0]
    return first


def _copy(output: Any) -> Any:
    """Copy an output, since what follows may change it in place."""
    if isinstance(output, Tensor):
        return output.detach().clone()
    return type(output)(
        None if one is None else one.detach().clone() for one in output
    )
