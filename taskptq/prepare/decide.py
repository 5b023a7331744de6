"""Decide what is folded and swapped: by a batch, by structure, by a file."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from taskptq.prepare.compare import Check
from taskptq.prepare.decisions import Decisions
from taskptq.prepare.fuse import (
    candidate_pairs,
    fits,
    former_pairs,
    is_norm,
    structural_pairs,
)
from taskptq.prepare.plain_weights import (
    is_computed,
    is_plain,
    shared_parameters,
)
from taskptq.prepare.swap import Plan, nothing_to_quantize
from taskptq.prepare.tree import open_modules
from taskptq.prepare.verify import LocalChecks

logger = logging.getLogger('taskptq')

Agree = Callable[[set[str]], set[str]]
Pair = tuple[str, str]

ELSEWHERE = 'left float on another rank'
NOT_FOLLOWING = 'follows no layer of its own that it could be folded into'


def accept_all(names: set[str]) -> set[str]:
    """Return what all ranks accept, where there is one rank."""
    return names


def decide_by_structure(model: nn.Module, plans: list[Plan]) -> Decisions:
    """Fold only what the classes of the model guarantee.

    Args:
        model: Float model; left as it is.
        plans: What ``plan_swap`` planned.
    """
    pairs = _foldable(model, structural_pairs(model), plans, {})
    return _decisions(model, plans, pairs, left_float={}, kept={})


def decide_by_batch(
    model: nn.Module,
    plans: list[Plan],
    *,
    run: Callable[[], Any],
    agree: Agree = accept_all,
) -> tuple[Decisions, LocalChecks]:
    """Fold and swap only what one pass of the float model confirms.

    What the pass does not reach is swapped by its exact class, and folded
    where the classes guarantee the pair.

    Args:
        model: Float model in eval mode; left as it is.
        plans: What ``plan_swap`` planned.
        run: Runs the model on a batch.
        agree: Names that this rank accepts -> names that all ranks accept.

    Raises:
        ValueError: If nothing is left to quantize.
    """
    pairs = _foldable(model, candidate_pairs(model), plans, {})
    checks = LocalChecks(
        model,
        swaps=[
            Check(plan.name, plan.module, plan.cls, plan.scheme)
            for plan in plans
            if plan.cls is not None
        ],
        pairs=pairs,
    )
    checks.run(run)
    left_float = _left_float(plans, checks)
    pairs = _foldable(model, pairs, plans, left_float)
    folded, kept = _confirmed(model, pairs, checks)
    swaps = {p.name for p in plans if p.cls is not None} - left_float.keys()
    accepted = agree(
        {f'swap {name}' for name in swaps}
        | {f'fold {norm}' for _, norm in folded}
    )
    for name in sorted(swaps):
        if f'swap {name}' not in accepted:
            left_float[name] = ELSEWHERE
    for _, norm in folded:
        if f'fold {norm}' not in accepted:
            kept[norm] = 'cannot be folded on another rank'
    folded = [pair for pair in folded if pair[1] not in kept]
    _warn_of_norms(model, kept)
    if not swaps - left_float.keys():
        raise ValueError(
            nothing_to_quantize(model, plans)
            + ''.join(f'; {n}: {r}' for n, r in list(left_float.items())[:3])
        )
    return _decisions(model, plans, folded, left_float, kept), checks


def check_decisions(
    model: nn.Module, plans: list[Plan], decisions: Decisions
) -> None:
    """Refuse decisions that do not fit a model, before it changes.

    Args:
        model: Float model.
        plans: What ``plan_swap`` planned.
        decisions: From a file.

    Raises:
        ValueError: Names the layer or norm that does not fit.
    """
    modules = dict(open_modules(model))
    _check_names(modules, plans, decisions)
    _check_baked(plans, decisions)
    for layer, norm in decisions.folded:
        plain = layer in decisions.baked or (
            layer in modules and is_plain(modules[layer], 'weight')
        )
        if not plain or not fits(modules[layer], modules.get(norm)):
            raise _misfit(f'fold {norm!r} into {layer!r}')


def _check_names(
    modules: dict[str, nn.Module], plans: list[Plan], decisions: Decisions
) -> None:
    layers = {plan.name for plan in plans}
    for name in (*decisions.left_float, *decisions.baked):
        if name not in layers:
            raise _misfit(f'name the layer {name!r}')
    for name in decisions.kept_norms:
        if name not in modules:
            raise _misfit(f'name the norm {name!r}')
    for name in decisions.untied:
        layer, _, parameter = name.rpartition('.')
        if parameter not in getattr(modules.get(layer), '_parameters', {}):
            raise _misfit(f'name the parameter {name!r}')


def _check_baked(plans: list[Plan], decisions: Decisions) -> None:
    baked = set(decisions.baked)
    for plan in plans:
        computed = is_computed(plan.module)
        if plan.name in baked and not computed:
            raise _misfit(f'store the computed weight of {plan.name!r}')
        swapped = plan.cls is not None and (
            plan.name not in decisions.left_float
        )
        if swapped and computed and plan.name not in baked:
            raise _misfit(f'expect a plain weight of {plan.name!r}')


def _misfit(text: str) -> ValueError:
    return ValueError(
        f'the recorded decisions {text}, which this model does not fit: they '
        'were made for another one'
    )


def _foldable(
    model: nn.Module,
    pairs: Iterable[Pair],
    plans: list[Plan],
    left_float: dict[str, str],
) -> list[Pair]:
    """Leave out layers with a computed weight that will not be stored."""
    swapped = {
        plan.name
        for plan in plans
        if plan.cls is not None and plan.name not in left_float
    }
    return [
        (layer, norm)
        for layer, norm in pairs
        if layer in swapped or is_plain(model.get_submodule(layer), 'weight')
    ]


def _left_float(plans: list[Plan], checks: LocalChecks) -> dict[str, str]:
    """Return layer -> why the pass says that it must stay float."""
    left: dict[str, str] = {}
    for plan in plans:
        if plan.cls is None:
            continue
        reason = checks.swap_reason(plan.name)
        # A swapped attention calls the layers whose weights it reads.
        readers = [
            reader
            for reader in sorted(checks.readers[plan.name])
            if not reader or reader in left
        ]
        if not reason and readers:
            by = f' by {readers[-1]}' if readers[-1] else ''
            reason = f'its weight is read past its forward{by}'
        if reason:
            left[plan.name] = reason
    return left


def _confirmed(
    model: nn.Module, pairs: list[Pair], checks: LocalChecks
) -> tuple[list[Pair], dict[str, str]]:
    """Return the pairs to fold, and norm -> why it is kept."""
    guaranteed = set(structural_pairs(model))
    folded: dict[str, str] = {}
    kept: dict[str, str] = {}
    for layer, norm in pairs:
        if norm in folded.values() or layer in folded:
            continue
        if checks.reached(layer, norm):
            reason = checks.fold_reason(layer, norm)
        else:
            known = (layer, norm) in guaranteed
            reason = '' if known else 'was not reached by the batch'
        if reason:
            kept.setdefault(norm, reason)
        else:
            folded[layer] = norm
    for norm in folded.values():
        kept.pop(norm, None)
    return list(folded.items()), kept


def _decisions(
    model: nn.Module,
    plans: list[Plan],
    folded: Iterable[Pair],
    left_float: dict[str, str],
    kept: dict[str, str],
) -> Decisions:
    swapped = [
        plan
        for plan in plans
        if plan.cls is not None and plan.name not in left_float
    ]
    untied = shared_parameters(
        model, {plan.name: plan.weights() for plan in swapped}
    )
    order = {name: i for i, (name, _) in enumerate(open_modules(model))}
    folded = sorted(folded, key=lambda pair: order[pair[1]])
    done = {norm for _, norm in folded}
    norms = [name for name, m in open_modules(model) if is_norm(m)]
    return Decisions(
        folded=tuple(folded),
        baked=tuple(p.name for p in swapped if is_computed(p.module)),
        untied=tuple(untied),
        left_float=left_float,
        kept_norms={
            name: kept.get(name, NOT_FOLLOWING)
            for name in norms
            if name not in done
        },
    )


def _warn_of_norms(model: nn.Module, kept: dict[str, str]) -> None:
    # Other neighbours of norms were only tried.
    expected = {norm for _, norm in former_pairs(model)}
    for name, reason in kept.items():
        if name in expected:
            logger.warning('%s is not folded: it %s', name, reason)
