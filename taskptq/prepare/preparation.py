"""Fold, swap, and check both: a float model to one with quantizers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from taskptq.core import float_only
from taskptq.modules import leave_fast_paths, share_inputs
from taskptq.prepare.decide import (
    Agree,
    accept_all,
    check_decisions,
    decide_by_batch,
    decide_by_structure,
)
from taskptq.prepare.decisions import Decisions
from taskptq.prepare.fuse import fuse_batchnorm
from taskptq.prepare.output_grids import find_output_grids, place_output_grids
from taskptq.prepare.plain_weights import bake, untie
from taskptq.prepare.product_owners import (
    finding_owners,
    restore_owners,
)
from taskptq.prepare.product_rows import add_own_products
from taskptq.prepare.qconfig import QConfig
from taskptq.prepare.report import SwapReport
from taskptq.prepare.subnormal import flush_subnormal
from taskptq.prepare.swap import Swapped, apply_plans, plan_swap
from taskptq.prepare.tree import is_scripted, open_modules
from taskptq.prepare.verify import LocalChecks
from taskptq.prepare.watch import count_calls

logger = logging.getLogger('taskptq')

Forward = Callable[[nn.Module, Any], Any]


def prepare(
    model: nn.Module,
    qconfig: QConfig,
    *,
    batch: Any = None,
    forward: Forward | None = None,
    decisions: Decisions | None = None,
    agree: Agree | None = None,
) -> SwapReport:
    """Fold BatchNorms, then swap in the counterparts, in place.

    With a batch, each fold and each swap is compared with the float model
    where it acts, before anything changes; what differs is left as it is,
    with a reason in the report and a warning. With decisions, those of an
    earlier call are repeated without data. With neither, only that is folded
    which the model's classes guarantee.

    Args:
        model: Float model in eval mode.
        qconfig: Recipe.
        batch: What ``forward`` runs the model on.
        forward: (model, batch) -> anything; None is ``model(batch)``.
        decisions: What a quantized file of this model recorded.
        agree: Names that one rank accepts -> names that all ranks accept;
            None where there is one rank. Called twice with a batch.

    Returns:
        The fate of each layer; its ``decisions`` go into a quantized file.

    Raises:
        ValueError: If a pattern matches nothing, nothing can be quantized,
            a weight is not a plain parameter, the decisions do not fit, or
            the model is quantized already; the model is then untouched.
            Also if a folded norm turns out to be called from a place that
            cannot be changed.
    """
    agree = agree or accept_all
    recorded = None if decisions is None else decisions.products
    plans = plan_swap(model, qconfig)
    flush_subnormal(model)
    checks = None

    def run() -> Any:
        return forward(model, batch) if forward else model(batch)

    if decisions is not None:
        check_decisions(model, plans, decisions)
    elif batch is None:
        decisions = decide_by_structure(model, plans)
    else:
        with _aside(model):
            decisions, checks = decide_by_batch(
                model, plans, run=run, agree=agree
            )
    norms = {norm: model.get_submodule(norm) for _, norm in decisions.folded}
    swapped = _apply(model, qconfig, decisions)
    flush_subnormal(model)  # products of small weights and small scales
    find = finding_owners(model, qconfig, kept=decisions.left_float)
    if checks is not None:
        with _aside(model), float_only(model), find:
            late = _late_reasons(model, swapped, norms, checks, run)
        decisions = _put_right(model, swapped, decisions, late, agree)
    elif recorded is not None:
        restore_owners(model, qconfig, recorded)
    else:
        with find:
            pass  # by the classes of the model alone
    share_inputs(model)
    if recorded is None and batch is not None and qconfig.deploy:
        with _aside(model):
            outputs = find_output_grids(model, run, runtime=qconfig.deploy)
        decisions = replace(
            decisions, outputs=tuple(grid.to_dict() for grid in outputs)
        )
    place_output_grids(model, qconfig, decisions.outputs)
    report = swapped.report
    report.folded = [norm for _, norm in decisions.folded]
    report.decisions = decisions
    add_own_products(report, model)
    if checks is not None:
        _warn_of_layers(report, decisions)
    logger.info(
        'Folded %d norms, kept %d%s',
        len(decisions.folded),
        len(decisions.kept_norms),
        ''.join(
            f'; {n} {r}' for n, r in list(decisions.kept_norms.items())[:1]
        ),
    )
    return report


def _apply(
    model: nn.Module, qconfig: QConfig, decisions: Decisions
) -> Swapped:
    """Change the model as decided; all checks were made."""
    modules = dict(open_modules(model))
    for name in decisions.baked:
        bake(modules[name])
    fuse_batchnorm(model, decisions.folded)
    untie(model, decisions.untied)
    plans = plan_swap(model, qconfig, left_float=decisions.left_float)
    swapped = apply_plans(model, plans)
    leave_fast_paths(model)
    return swapped


def _late_reasons(
    model: nn.Module,
    swapped: Swapped,
    norms: dict[str, nn.Module],
    checks: LocalChecks,
    run: Callable[[], Any],
) -> dict[str, str]:
    """Run the prepared model once: is everything called that should be?

    Returns:
        Layer -> why its counterpart does not stand in for it.

    Raises:
        ValueError: If a folded norm is still called.
    """
    watched = {f'norm {name}': norm for name, norm in norms.items()}
    for name, (module, quant) in swapped.counterparts.items():
        watched |= {f'float {name}': module, f'quant {name}': quant}
    calls = count_calls(model, watched, run)
    for name in norms:
        if calls[f'norm {name}']:
            raise ValueError(
                f'{name} is folded into the layer before it, but something '
                'that is neither an attribute nor in a list, tuple or dict '
                'of a module still calls it: hold it as an attribute'
            )
    late = {}
    for name in swapped.counterparts:
        if calls[f'float {name}']:
            late[name] = (
                'called from a place that is neither an attribute nor in a '
                'list, tuple or dict of a module'
            )
        elif checks.calls(name) and not calls[f'quant {name}']:
            late[name] = 'its counterpart is not called where it was called'
    return late


def _put_right(
    model: nn.Module,
    swapped: Swapped,
    decisions: Decisions,
    late: dict[str, str],
    agree: Agree,
) -> Decisions:
    """Give layers back whose counterparts do not stand in for them."""
    accepted = agree(set(swapped.counterparts) - late.keys())
    for name in swapped.counterparts:
        if name not in accepted:
            late.setdefault(name, 'left float on another rank')
    swapped.undo(model, late)
    if not swapped.counterparts:
        raise ValueError(
            f'{type(model).__name__} has no layer to quantize: every '
            'counterpart is passed by'
        )
    return decisions.with_left_float(late)


def _warn_of_layers(report: SwapReport, decisions: Decisions) -> None:
    """Name the layers that a check left float, if no product reads them."""
    for row in report.rows:
        reason = decisions.left_float.get(row.name)
        if reason is not None and row.status == 'float':
            logger.warning('%s stays float: %s', row.name, reason)


@contextmanager
def _aside(model: nn.Module) -> Iterator[None]:
    """Run in eval mode, and leave modes and random generators as they were."""
    modes = [
        (module, module.training)
        for _, module in open_modules(model)
        if not is_scripted(module)
    ]
    devices = (
        [torch.cuda.current_device()] if torch.cuda.is_available() else []
    )
    model.eval()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        for module, training in modes:
            module.training = training
