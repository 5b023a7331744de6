"""Compute once what no image changes.

The first self-attention of a DETR reads learned queries alone, and so do the
projections of their positions: their outputs are the same for every image.
Such a module is replaced by its output. That is exact, saves its work, and
leaves nothing to quantize there (the finite set of inputs of Huang et al.,
'TFMQ-DM', CVPR 2024, of size one).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from taskptq.calibration.batches import batch_length
from taskptq.calibration.calibrate import calibration_mode
from taskptq.core.settings import Flag
from taskptq.hosts.class_lookup import lookup
from taskptq.methods.constant_branch.stored import (
    Form,
    StoredOutput,
    put,
    read_form,
)
from taskptq.methods.constant_branch.variants import (
    enlarged,
    noisy,
    other_number,
)
from taskptq.methods.constant_branch.watch import (
    OnlyCall,
    compare_numbers,
    same,
    unreached,
    watch,
)
from taskptq.methods.rewriting.statistics import gather, open_attention
from taskptq.methods.rewriting.verified_rewrite import (
    PATTERNS,
    TOLERANCE,
    TOLERANCE_RULE,
    CalibrationStats,
    RewriteEntry,
    RewriteReport,
    relative_error,
)
from taskptq.prepare.patterns import check_all_used, matches
from taskptq.prepare.products import trace_products
from taskptq.registry import REWRITES

__all__ = ['ConstantBranch']

logger = logging.getLogger('taskptq')

_Stored = tuple[Form, list[Tensor | None]]

# What a model that takes one size of images stops with.
_FAILURES = (
    ArithmeticError, AssertionError, AttributeError, LookupError,
    RuntimeError, TypeError, ValueError,
)  # fmt: skip


@dataclass(kw_only=True)
class _Branch:
    """A module whose output stays, and what is stored of it."""

    form: Form
    values: list[Tensor | None]
    entry: RewriteEntry
    module: nn.Module
    error: float | None = None


@REWRITES.register_module()
class ConstantBranch:
    """Replace modules whose output no image changes by that output.

    Seen on calibration images, on noise, on larger images and on another
    number of images. Modules that multiply nothing stay, and so do parts of
    an attention that is quantized as a whole.

    Args:
        fixed_size: Do without larger images: for a model that only ever gets
            images of the calibration images' size.
        patterns: Names of the modules that may be replaced, as in a QConfig;
            None is all.
        tolerance: Largest relative change of such an output.
    """

    def __init__(
        self,
        *,
        fixed_size: bool = False,
        patterns: Sequence[str] | None = None,
        tolerance: float = TOLERANCE,
    ) -> None:
        self.fixed_size = Flag().read(fixed_size, name='fixed_size')
        self.patterns = PATTERNS.read(patterns, name='patterns')
        self.tolerance = TOLERANCE_RULE.read(tolerance, name='tolerance')

    def __call__(
        self, model: nn.Module, stats: CalibrationStats
    ) -> RewriteReport:
        """Rewrite a float model in place.

        Raises:
            ValueError: If there is no calibration data, it holds no images,
                or a pattern matches no module.
        """
        if not stats.batches:
            raise ValueError(
                'calibration set is empty: give at least one batch'
            )
        calls = self._unchanged(model, stats)
        reason = '' if self.fixed_size else _survive_size(model, calls, stats)
        branches = _branches(model, _for_any_number(model, calls, stats))
        _count_products(model, branches, stats)
        branches = [one for one in branches if one.entry.details['macs']]
        entries = [one.entry for one in branches]
        if reason:
            for entry in entries:
                entry.status, entry.reason = 'skipped', reason
            branches = []
        standing = _replace(model, branches, stats, tolerance=self.tolerance)
        return RewriteReport(
            rewrite=type(self).__name__,
            settings={
                'fixed_size': self.fixed_size,
                'patterns': None
                if self.patterns is None
                else list(self.patterns),
            },
            entries=entries,
            structure={'outputs': [one.form.to_dict() for one in standing]}
            if standing
            else {},
        )

    @classmethod
    def replay(cls, model: nn.Module, structure: Mapping[str, Any]) -> None:
        """Replace the modules that a file names; see ``StructuralRewrite``.

        Raises:
            ValueError: If the outputs do not fit the model.
        """
        found = structure.get('outputs')
        if not isinstance(found, list | tuple):
            raise ValueError('stored outputs are not a list')
        if len(found) > sum(1 for _ in model.modules()):
            raise ValueError('more stored outputs than modules')
        for plain in found:
            form = read_form(model, plain)
            device = next((p.device for p in model.parameters()), None)
            put(model, form.name, StoredOutput(form, device=device))

    def _names(self, model: nn.Module) -> list[str]:
        names = [name for name, _ in model.named_modules() if name]
        if self.patterns is None:
            return names
        check_all_used(
            self.patterns, names, argument='ConstantBranch.patterns'
        )
        return [
            name
            for name in names
            if any(matches(name, pattern) for pattern in self.patterns)
        ]

    def _unchanged(
        self, model: nn.Module, stats: CalibrationStats
    ) -> dict[str, OnlyCall]:
        """Return what images and noise of one size leave as it is."""
        first = stats.batches[0]
        names = self._names(model)
        free = unreached(model, first, forward=stats.forward, names=names)
        calls = watch(model, first, forward=stats.forward, names=sorted(free))
        others = [noisy(first), *stats.batches[1:2]]
        for batch in others:
            if batch_length(batch) == batch_length(first):
                _keep_same(model, calls, batch, stats)
        return calls


def _keep_same(
    model: nn.Module, calls: dict[str, OnlyCall], batch: Any, stats: Any
) -> None:
    """Drop the calls that another batch changes."""
    seen = watch(model, batch, forward=stats.forward, names=list(calls))
    for name, call in list(calls.items()):
        if name not in seen or not same(call, seen[name]):
            del calls[name]


def _survive_size(
    model: nn.Module, calls: dict[str, OnlyCall], stats: CalibrationStats
) -> str:
    """Drop what larger images change; return why that is unknown, or ''."""
    try:
        _keep_same(model, calls, enlarged(stats.batches[0]), stats)
    except _FAILURES as error:
        text = str(error).split('\n')[0][:200]
        return (
            'the model stops with images of another size '
            f'({type(error).__name__}: {text}): set fixed_size=True if it '
            'only ever gets this one'
        )
    return ''


def _for_any_number(
    model: nn.Module, calls: dict[str, OnlyCall], stats: CalibrationStats
) -> dict[str, _Stored]:
    """Return what is left with another number of images, on every rank."""
    first = stats.batches[0]
    other = other_number(first)
    images = (batch_length(first), batch_length(other))
    seen = watch(model, other, forward=stats.forward, names=list(calls))
    found = {}
    for name, call in calls.items():
        if name in seen:
            stored = compare_numbers(name, call, seen[name], images=images)
            if stored is not None:
                found[name] = stored
    ranks = gather(found)
    return {
        name: stored
        for name, stored in ranks[0].items()
        if all(name in rank for rank in ranks)
    }


def _branches(model: nn.Module, found: Mapping[str, _Stored]) -> list[_Branch]:
    """Return the outermost modules that can be replaced."""
    modules = dict(model.named_modules())
    branches = []
    for name in sorted(found):
        parents = _parents(name)
        if any(parent in found for parent in parents):
            continue
        if any(lookup(modules[parent]) is not None for parent in parents):
            continue
        form, values = found[name]
        entry = RewriteEntry(name=name, part='output', status='unchanged')
        branches.append(
            _Branch(
                form=form, values=values, entry=entry, module=modules[name]
            )
        )
    return branches


def _parents(name: str) -> list[str]:
    """Names of the modules around one, without the model itself."""
    parts = name.split('.')
    return ['.'.join(parts[:end]) for end in range(1, len(parts))]


def _count_products(
    model: nn.Module, branches: Sequence[_Branch], stats: CalibrationStats
) -> None:
    """Note the multiply-accumulates, weights and stored numbers of each."""
    if not branches:
        return
    batch = stats.batches[0]
    report = trace_products(model, [batch], forward=stats.forward)
    for branch in branches:
        name = branch.entry.name
        macs = sum(
            product.total
            for product in report.products
            if product.module == name or product.module.startswith(f'{name}.')
        )
        sizes = [p.numel() for p in branch.module.parameters()]
        values = [v.numel() for v in branch.values if v is not None]
        branch.entry.details = {
            'macs': macs // max(batch_length(batch), 1),
            'weights': sum(sizes),
            'stored': sum(values),
        }


def _replace(
    model: nn.Module,
    branches: Sequence[_Branch],
    stats: CalibrationStats,
    *,
    tolerance: float,
) -> list[_Branch]:
    """Replace modules; take back those that turn out to be read otherwise."""
    standing: list[_Branch] = []
    for group in (branches, *([one] for one in branches)):
        waiting = [one for one in group if one not in standing]
        if not waiting:
            continue
        # All ranks decide the same.
        reasons = gather(_try(model, waiting, stats))
        errors = gather([branch.error for branch in waiting])
        for branch, *ranks in zip(waiting, *errors, strict=True):
            known = [error for error in ranks if error is not None]
            branch.error = max(known) if len(known) == len(ranks) else None
            _judge(branch, next(filter(None, reasons), ''), tolerance)
            if branch.entry.status == 'applied':
                standing.append(branch)
            else:
                put(model, branch.form.name, branch.module)
    return standing


def _try(
    model: nn.Module, branches: Sequence[_Branch], stats: CalibrationStats
) -> str:
    """Run the model with stored outputs; return what it stops with, or ''."""
    first = stats.batches[0]
    handles = []
    for branch in branches:
        device = next((p.device for p in model.parameters()), None)
        stored = StoredOutput(branch.form, device=device)
        stored.store(branch.values)
        put(model, branch.form.name, stored)
        branch.error = None
        handles.append(
            stored.register_forward_hook(_comparing(branch), with_kwargs=True)
        )
    try:
        with calibration_mode(model), open_attention():
            for batch in (first, other_number(first)):
                stats.forward(model, batch)
    except _FAILURES as error:
        text = str(error).split('\n')[0][:200]
        return f'the model stops with {type(error).__name__}: {text}'
    finally:
        for handle in handles:
            handle.remove()
    return ''


def _comparing(branch: _Branch) -> Any:
    """Return a hook that runs the module beside its stored output."""

    def hook(_module: Any, args: Any, kwargs: Any, output: Any) -> None:
        expected = branch.module(*args, **kwargs)
        single = branch.form.single
        pairs = zip(
            (expected,) if single else expected,
            (output,) if single else output,
            strict=True,
        )
        errors = [relative_error(a, b) for a, b in pairs if a is not None]
        branch.error = max([branch.error or 0.0, *errors])

    return hook


def _judge(branch: _Branch, reason: str, tolerance: float) -> None:
    """Set the status of an entry by what a run has shown."""
    entry = branch.entry
    entry.max_relative_error = branch.error
    if not reason and branch.error is None:
        reason = 'it never ran in its place'
    elif not reason and not (branch.error or 0.0) <= tolerance:
        reason = (
            f'its output changed by {branch.error:.2g}, more than the '
            f'tolerance of {tolerance:g}'
        )
    entry.status, entry.reason = ('undone' if reason else 'applied'), reason
    if reason:
        logger.warning('%s: its output was not stored: %s', entry.name, reason)
