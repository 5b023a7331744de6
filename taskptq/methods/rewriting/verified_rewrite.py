"""Common parts of attention rewrites: proposals, verification, reports.

A rewrite proposes new values for rows of an attention's parameters. They are
written, each attention runs with and without them on calibration data, and
edits that change its output are undone.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from taskptq.calibration.calibrate import Forward, calibration_mode
from taskptq.core.settings import Number, Whole, patterns
from taskptq.methods.rewriting.statistics import gather, open_attention
from taskptq.methods.rewriting.views import AttentionView

logger = logging.getLogger('taskptq')

# Largest change of an attention's output that float32 rounding explains,
# relative to the output's largest magnitude.
TOLERANCE = 1e-5
# Rules of the arguments that all rewrites have.
PATTERNS = patterns(optional=True)
TOLERANCE_RULE = Number(above=0, high=1)
VERIFY_BATCHES = Whole(low=1)


class CalibrationStats(Protocol):
    """Calibration data, as the engine passes it to a rewrite."""

    @property
    def batches(self) -> Sequence[Any]:
        """Collated calibration batches of this rank."""

    @property
    def forward(self) -> Forward:
        """Runs a model on one batch."""


@dataclass(kw_only=True)
class RewriteEntry:
    """Outcome for one part of one attention, or for a layer's input.

    Args:
        name: Qualified name of the attention, or of the layers, separated by
            commas.
        part: The part, e.g. 'key', 'value', 'input'.
        status: 'applied'; 'unchanged' if unnecessary; 'skipped' if
            impossible; 'undone' if verification failed.
        reason: Why it is not 'applied'.
        max_relative_error: Largest change of its output, relative to the
            output's largest magnitude; None if not verified.
        details: Numbers of the method, plain types.
    """

    name: str
    part: str
    status: str
    reason: str = ''
    max_relative_error: float | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True)
class RewriteReport:
    """Report of a rewrite.

    Args:
        rewrite: Class of the rewrite.
        settings: Its arguments, plain types.
        entries: Outcome for each attention or layer.
        structure: What it changed besides values, plain types, for ``replay``
            to repeat on a model that is restored; empty if nothing.
    """

    rewrite: str
    settings: dict[str, Any] = field(default_factory=dict)
    entries: list[RewriteEntry] = field(default_factory=list)
    structure: dict[str, Any] = field(default_factory=dict)

    @property
    def max_relative_error(self) -> float:
        """Largest change of an output by applied edits; 0 without any."""
        errors = [
            entry.max_relative_error
            for entry in self.entries
            if entry.status == 'applied'
            and entry.max_relative_error is not None
        ]
        return max(errors, default=0.0)

    def count(self, status: str) -> int:
        """Return how many entries have a status."""
        return sum(entry.status == status for entry in self.entries)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types."""
        return {
            'rewrite': self.rewrite,
            'settings': dict(self.settings),
            'num_applied': self.count('applied'),
            'max_relative_error': self.max_relative_error,
            'entries': [asdict(entry) for entry in self.entries],
            **({'structure': self.structure} if self.structure else {}),
        }


@dataclass(frozen=True, kw_only=True)
class RowEdit:
    """New values of some rows of a parameter.

    Args:
        rows: The rows, sharing the parameter's memory.
        after: New values.
        before: Old values.
    """

    rows: Tensor
    after: Tensor
    before: Tensor

    @classmethod
    def to(cls, rows: Tensor, after: Tensor) -> RowEdit:
        """Plan to write ``after``, of any float type, to ``rows``."""
        after = after.to(device=rows.device, dtype=rows.dtype)
        return cls(rows=rows, after=after, before=rows.clone())


@dataclass(kw_only=True)
class Proposal:
    """Edits of one part of one attention; no two share a row.

    Args:
        view: The attention.
        entry: Its entry in the report.
        edits: Edits to write; empty if the entry gives a reason.
    """

    view: AttentionView
    entry: RewriteEntry
    edits: list[RowEdit] = field(default_factory=list)
    errors: list[float] = field(default_factory=list)

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

    def compare(
        self, module: nn.Module, args: Any, kwargs: Any, output: Any
    ) -> None:
        """Forward hook: run again with the old values and compare."""
        self.undo()
        try:
            before = module.forward(*args, **kwargs)
        finally:
            self.apply()
        error = relative_error(_first(before), _first(output))
        self.errors.append(error)


def _first(output: Any) -> Tensor:
    """Return an attention's output without its attention weights."""
    first: Tensor = output if isinstance(output, Tensor) else output[0]
    return first


def relative_error(before: Tensor, after: Tensor) -> float:
    """Return max |after - before| / max |before|.

    Elements that are not finite in both (queries that may attend to nothing)
    count as equal; the result is infinite if only one of them isn't finite.
    """
    before, after = before.double(), after.double()
    finite = before.isfinite()
    if not torch.equal(finite, after.isfinite()):
        return math.inf
    before, after = before[finite], after[finite]
    if before.numel() == 0:
        return 0.0
    change = float((after - before).abs().max())
    peak = float(before.abs().max())
    return change / peak if peak > 0 else (math.inf if change else 0.0)


def apply_proposals(
    model: nn.Module,
    proposals: Sequence[Proposal],
    stats: CalibrationStats,
    *,
    tolerance: float = TOLERANCE,
    verify_batches: int = 1,
) -> None:
    """Write the edits, verify each, and undo those that change an output.

    All attentions are verified together, each on the first batches in which
    it runs. Sets status, reason and error of the proposals' entries. In a
    distributed run, all ranks decide the same.

    Args:
        model: Float model, changed in place.
        proposals: Proposals, no two of which share a row. Those without
            edits are ignored.
        stats: Calibration data.
        tolerance: Largest ``max_relative_error`` to accept.
        verify_batches: Batches to verify each attention on.
    """
    proposals = [proposal for proposal in proposals if proposal.edits]
    if not proposals:
        return
    for proposal in proposals:
        proposal.apply()
    _run_verification(model, proposals, stats, verify_batches)
    own = [max(proposal.errors, default=None) for proposal in proposals]
    for proposal, *ranks in zip(proposals, *gather(own), strict=True):
        entry = proposal.entry
        errors = [error for error in ranks if error is not None]
        entry.max_relative_error = max(errors, default=None)
        entry.status = 'applied'
        if entry.max_relative_error is None:
            _take_back(proposal, 'it never ran on the calibration data')
        elif not entry.max_relative_error <= tolerance:
            _take_back(
                proposal,
                f'its output changed by {entry.max_relative_error:.2g}, more '
                f'than the tolerance of {tolerance:g}',
            )


def _run_verification(
    model: nn.Module,
    proposals: Sequence[Proposal],
    stats: CalibrationStats,
    num_batches: int,
) -> None:
    """Fill in the proposals' errors from as few batches as needed."""
    done = dict.fromkeys(range(len(proposals)), 0)
    with ExitStack() as stack:
        for proposal in proposals:
            handle = proposal.view.module.register_forward_hook(
                proposal.compare, with_kwargs=True
            )
            stack.callback(handle.remove)
        stack.enter_context(calibration_mode(model))
        stack.enter_context(open_attention())
        for batch in stats.batches:
            seen = [len(proposal.errors) for proposal in proposals]
            stats.forward(model, batch)
            for index, proposal in enumerate(proposals):
                done[index] += len(proposal.errors) > seen[index]
            if min(done.values()) >= num_batches:
                break


def _take_back(proposal: Proposal, reason: str) -> None:
    proposal.undo()
    proposal.entry.status = 'undone'
    proposal.entry.reason = reason
    logger.warning(
        '%s: rewrite of its %s was undone: %s',
        proposal.entry.name,
        proposal.entry.part,
        reason,
    )


def skipped_entries(
    reasons: dict[str, str], *, part: str
) -> list[RewriteEntry]:
    """Return entries for attentions that a rewrite cannot handle."""
    return [
        RewriteEntry(name=name, part=part, status='skipped', reason=reason)
        for name, reason in reasons.items()
    ]


def key_shift_obstacle(view: AttentionView, part: str = 'key') -> str | None:
    """Return why a constant cannot be added to all keys, or None."""
    if view.extra_keys:
        return (
            'a learned or zero token joins the keys after their projection '
            'and would not be shifted with them'
        )
    projection = view.part(part)
    if projection is None or projection.bias is None:
        return 'the key projection has no bias to fold a shift into'
    return None
