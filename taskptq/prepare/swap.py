"""Swap float modules for their counterparts: check all, then swap all."""
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from taskptq.core import Quantizer
from taskptq.modules.base import QuantModule, Scheme
from taskptq.modules.hosts import counterpart_class
from taskptq.prepare.mapping import (
    KEPT_FLOAT,
    OUTPUT_LAYERS,
    OUTPUT_SEQUENCES,
    POSITION_LAYERS,
    dotted,
    is_attention,
    lookup,
)
from taskptq.prepare.patterns import check_all_used, matches
from taskptq.prepare.qconfig import QConfig
from taskptq.prepare.report import SwapReport, SwapRow


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What is to happen to one module; ``cls`` None leaves it float."""

    name: str
    module: nn.Module
    scheme: Scheme
    cls: type[QuantModule] | None
    reason: str


def swap(model: nn.Module, qconfig: QConfig) -> SwapReport:
    """Replace every mapped module by its counterpart, in place.

    Nothing is changed unless every check passes.

    Args:
        model: Float model in eval mode.
        qconfig: Recipe.

    Returns:
        The fate of every module that carries weights or a matmul.

    Raises:
        ValueError: If a pattern matches nothing, the model has no layer that
            could be quantized, or it is quantized already.
    """
    made: dict[int, QuantModule] = {}
    report = SwapReport()
    for plan in _plan(model, qconfig):
        reason = plan.reason
        quant = None
        if plan.cls is not None:
            quant = plan.cls.from_float(plan.module, scheme=plan.scheme)
            if not _own_quantizers(quant):
                quant, reason = None, 'every point of it is False in qconfig'
        if quant is not None:
            made[id(plan.module)] = quant
        report.rows.append(_row(plan, quant, reason))
    if not made:
        raise ValueError(_nothing_to_quantize(model))
    _replace(model, made)
    return report


def check_swap(model: nn.Module, qconfig: QConfig) -> None:
    """Raise what ``swap`` would raise, without changing the model.

    Raises:
        ValueError: See :func:`swap`.
    """
    if all(plan.cls is None for plan in _plan(model, qconfig)):
        raise ValueError(_nothing_to_quantize(model))


def _nothing_to_quantize(model: nn.Module) -> str:
    return (
        f'{type(model).__name__} has no layer to quantize: every module is '
        'unmapped or kept float by qconfig'
    )


def _plan(model: nn.Module, qconfig: QConfig) -> list[_Plan]:
    """Decide on every candidate; all checks are made here."""
    if lookup(model) is not None:
        raise ValueError(
            f'the model is a bare {type(model).__name__}, which nothing '
            'holds: wrap it, e.g. in nn.Sequential'
        )
    candidates = _candidates(model)
    names = [name for name, _ in candidates]
    for argument, patterns in qconfig.patterns().items():
        check_all_used(patterns, names, argument=argument)
    edges = edge_layers(candidates, qconfig)
    plans: list[_Plan] = []
    bypassed: dict[int, str] = {}
    for name, module in candidates:
        positions = any(matches(name, p) for p in POSITION_LAYERS)
        scheme = qconfig.scheme(
            name, edge=name in edges, positions=positions
        )
        reason = _reason_to_keep(name, module, qconfig, scheme)
        reason = reason or bypassed.get(id(module), '')
        cls = None
        if not reason:
            implementation = lookup(module)
            assert implementation is not None
            cls = counterpart_class(implementation, type(module))
            reason = 'edge layer' if name in edges else ''
        elif isinstance(module, nn.MultiheadAttention):
            # The float one reads its projection's weight past its forward.
            bypassed[id(module.out_proj)] = f'read by {name}, which is float'
        plans.append(
            _Plan(
                name=name, module=module, scheme=scheme, cls=cls, reason=reason
            )
        )
    return plans


def edge_layers(
    candidates: list[tuple[str, nn.Module]], qconfig: QConfig
) -> set[str]:
    """Names of the first conv, the heads' last layers, and the user's."""
    names = [name for name, _ in candidates]
    edges = {name for name, m in candidates if _is_first(m)}
    edges = {min(edges, key=names.index)} if edges else set()
    for name in names:
        patterns = (*OUTPUT_LAYERS, *qconfig.edges)
        if any(matches(name, pattern) for pattern in patterns):
            edges.add(name)
    return edges | _last_of_sequences(names)


def _is_first(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d)


def _last_of_sequences(names: list[str]) -> set[str]:
    """Highest-numbered layer of each listed regression network."""
    last: dict[str, tuple[int, str]] = {}
    for name in names:
        parent, _, index = name.rpartition('.')
        if index.isdigit() and any(
            matches(parent, pattern) for pattern in OUTPUT_SEQUENCES
        ):
            last[parent] = max(
                last.get(parent, (-1, '')), (int(index), name)
            )
    return {name for _, name in last.values()}


def _candidates(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Modules with a weight matrix, with attention, or float by design."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, QuantModule):
            raise ValueError(
                f'{name or type(model).__name__} is quantized already: '
                'prepare a fresh float model'
            )
        if (
            lookup(module) is not None
            or dotted(type(module)) in KEPT_FLOAT
            or _carries_matmul(module)
        ):
            found.append((name, module))
    return found


def _carries_matmul(module: nn.Module) -> bool:
    own = module._parameters.values()
    if any(p is not None and p.dim() >= 2 for p in own):
        return True
    # A wrapper's work is listed at the attention inside it.
    return is_attention(module) and not any(
        lookup(child) is not None and is_attention(child)
        for child in module.modules()
        if child is not module
    )


def _reason_to_keep(
    name: str, module: nn.Module, qconfig: QConfig, scheme: Scheme
) -> str:
    for pattern in qconfig.keep_float:
        if matches(name, pattern):
            return f'qconfig.keep_float {pattern!r}'
    if lookup(module) is None:
        kept = KEPT_FLOAT.get(dotted(type(module)))
        return kept or f'no counterpart of {dotted(type(module))}'
    if not any(vars(scheme).values()):
        return 'every point of it is False in qconfig'
    return ''


def _own_quantizers(quant: QuantModule) -> dict[str, Quantizer]:
    return {
        name: child
        for name, child in quant.named_children()
        if isinstance(child, Quantizer)
    }


def _row(plan: _Plan, quant: QuantModule | None, reason: str) -> SwapRow:
    kind = type(plan.module).__name__
    if quant is None:
        return SwapRow(
            name=plan.name, type=kind, status='float', reason=reason
        )
    bits: dict[str, int] = {}
    for name, quantizer in _own_quantizers(quant).items():
        if name in quant.weight_slots.values():
            point = 'weight_bits'
        elif name.endswith('input_quantizer'):
            point = 'activation_bits'
        elif name == 'softmax_quantizer':
            point = 'softmax_bits'
        else:
            point = 'attention_bits'
        num_bits = quantizer.spec.num_bits
        bits[point] = min(num_bits, bits.get(point, num_bits))
    return SwapRow(
        name=plan.name, type=kind, status='quantized', reason=reason, **bits
    )


def _replace(model: nn.Module, made: dict[int, QuantModule]) -> None:
    """Put the counterparts in, at every name a module has."""
    for parent, child_name, child in list(_children(model, made)):
        parent._modules[child_name] = made[id(child)]
    for quant in made.values():
        # An outer counterpart took over its children before they were swapped
        for name, inner in list(quant._modules.items()):
            if inner is not None and id(inner) in made:
                quant._modules[name] = made[id(inner)]


def _children(
    model: nn.Module, made: dict[int, QuantModule]
) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is not None and id(child) in made:
                yield parent, name, child
