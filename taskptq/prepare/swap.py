"""Swap float modules for their counterparts: check all, then swap all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from taskptq.core import FloatQuantizer, Quantizer
from taskptq.hosts.class_lookup import (
    is_attention,
    layer_patterns,
    lookup,
    plain_class,
)
from taskptq.hosts.registry import (
    KEPT_FLOAT,
    OUTPUT_LAYERS,
    OUTPUT_SEQUENCES,
    POSITION_LAYERS,
    dotted,
)
from taskptq.modules.base import QuantModule, Scheme
from taskptq.modules.conv import is_depthwise
from taskptq.modules.dynamic_class import counterpart_class
from taskptq.modules.product_mode import CHILD
from taskptq.prepare.patterns import check_all_used, matches
from taskptq.prepare.plain_weights import check_plain, is_computed
from taskptq.prepare.qconfig import QConfig
from taskptq.prepare.report import SwapReport, SwapRow
from taskptq.prepare.tree import is_scripted, open_modules, replace_modules

# Reason in the rows of first and last layers.
EDGE_LAYER = 'edge layer'


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to happen to one module.

    Args:
        name: Qualified name.
        module: Float module.
        scheme: Recipes of its quantizers.
        cls: Class of its counterpart; None leaves it float.
        reason: Why it stays float, or an exception from the recipe.
    """

    name: str
    module: nn.Module
    scheme: Scheme
    cls: type[QuantModule] | None
    reason: str

    def weights(self) -> list[str]:
        """Return the names of the weights that get a quantizer."""
        if self.cls is None or self.scheme.weight is None:
            return []
        return [
            parameter
            for parameter in self.cls.weight_slots
            if getattr(self.module, parameter, None) is not None
        ]


@dataclass(frozen=True, kw_only=True)
class Swapped:
    """What a swap did, and how to undo it.

    Args:
        report: The fate of every module.
        counterparts: Qualified name -> (float module, counterpart).
    """

    report: SwapReport
    counterparts: dict[str, tuple[nn.Module, QuantModule]]

    def undo(self, model: nn.Module, reasons: Mapping[str, str]) -> None:
        """Put float modules back, in place.

        Args:
            model: The swapped model.
            reasons: Qualified name -> why it must stay float.
        """
        back: dict[int, nn.Module] = {}
        for name in reasons:
            module, quant = self.counterparts.pop(name)
            back[id(quant)] = module
        replace_modules(model, back)
        self.report.rows[:] = [
            SwapRow(
                name=row.name,
                type=row.type,
                status='float',
                reason=reasons[row.name],
            )
            if row.name in reasons
            else row
            for row in self.report.rows
        ]


def swap(
    model: nn.Module,
    qconfig: QConfig,
    *,
    left_float: Mapping[str, str] | None = None,
) -> SwapReport:
    """Replace every mapped module by its counterpart, in place.

    Nothing is changed unless every check passes.

    Args:
        model: Float model in eval mode.
        qconfig: Recipe.
        left_float: Qualified name -> why a layer stays float all the same.

    Returns:
        The fate of every module that carries weights or a matmul.

    Raises:
        ValueError: If a pattern matches nothing, the model has no layer that
            could be quantized, a weight is not a plain parameter, or the
            model is quantized already.
    """
    plans = plan_swap(model, qconfig, left_float=left_float)
    return apply_plans(model, plans).report


def apply_plans(model: nn.Module, plans: list[Plan]) -> Swapped:
    """Carry out what :func:`plan_swap` planned, in place.

    Raises:
        ValueError: If nothing at all would be quantized.
    """
    made: dict[str, tuple[nn.Module, QuantModule]] = {}
    report = SwapReport()
    for plan in plans:
        reason = plan.reason
        quant = None
        if plan.cls is not None:
            quant = plan.cls.from_float(plan.module, scheme=plan.scheme)
            if not _own_quantizers(quant):
                quant, reason = None, 'every point of it is False in qconfig'
        if quant is not None:
            made[plan.name] = (plan.module, quant)
        report.rows.append(_row(plan, quant, reason))
    if not made:
        raise ValueError(nothing_to_quantize(model, plans))
    replace_modules(
        model, {id(module): quant for module, quant in made.values()}
    )
    return Swapped(report=report, counterparts=made)


def check_swap(model: nn.Module, qconfig: QConfig) -> None:
    """Raise what ``swap`` would raise, without changing the model.

    Raises:
        ValueError: See :func:`swap`.
    """
    plan_swap(model, qconfig)


def nothing_to_quantize(model: nn.Module, plans: list[Plan]) -> str:
    """Return the sentence for a model of which all stays float."""
    reasons = [f'{p.name}: {p.reason}' for p in plans if p.reason][:3]
    return (
        f'{type(model).__name__} has no layer to quantize: every module is '
        'unmapped or kept float' + ''.join(f'; {text}' for text in reasons)
    )


def plan_swap(
    model: nn.Module,
    qconfig: QConfig,
    *,
    left_float: Mapping[str, str] | None = None,
) -> list[Plan]:
    """Decide on every candidate; all checks are made here.

    Args:
        model: Float model; left as it is.
        qconfig: Recipe.
        left_float: Qualified name -> why a layer stays float all the same.

    Raises:
        ValueError: See :func:`swap`.
    """
    plans = _plans(model, qconfig, left_float or {})
    for plan in plans:
        if plan.cls is not None and not is_computed(plan.module):
            check_plain(plan.module, plan.cls.weight_slots, name=plan.name)
    if all(plan.cls is None for plan in plans):
        raise ValueError(nothing_to_quantize(model, plans))
    return plans


def _plans(
    model: nn.Module, qconfig: QConfig, left_float: Mapping[str, str]
) -> list[Plan]:
    if lookup(model) is not None:
        raise ValueError(
            f'the model is a bare {type(model).__name__}, which nothing '
            'holds: wrap it, e.g. in nn.Sequential'
        )
    candidates = _candidates(model)
    names = [name for name, _ in candidates]
    named = names + (product_names(model) if qconfig.with_products else [])
    for argument, patterns in qconfig.patterns().items():
        check_all_used(patterns, named, argument=argument)
    edges = edge_layers(model, candidates, qconfig)
    projections = layer_patterns(model, POSITION_LAYERS)
    plans: list[Plan] = []
    bypassed: dict[int, str] = {}
    for name, module in candidates:
        positions = is_listed(name, projections)
        scheme = qconfig.scheme(
            name,
            edge=name in edges,
            positions=positions,
            depthwise=is_depthwise(module),
        )
        reason = _reason_to_keep(name, module, qconfig, scheme)
        reason = reason or left_float.get(name, '')
        reason = reason or bypassed.get(id(module), '')
        cls = None
        if not reason:
            implementation = lookup(module)
            assert implementation is not None
            cls = counterpart_class(implementation, plain_class(module))
            reason = EDGE_LAYER if name in edges else ''
        elif isinstance(module, nn.MultiheadAttention):
            # The float one reads its projection's weight past its forward.
            bypassed[id(module.out_proj)] = f'read by {name}, which is float'
        plans.append(
            Plan(
                name=name, module=module, scheme=scheme, cls=cls, reason=reason
            )
        )
    return plans


def edge_layers(
    model: nn.Module,
    candidates: list[tuple[str, nn.Module]],
    qconfig: QConfig,
) -> set[str]:
    """Names of the first conv, the heads' last layers, and the user's."""
    names = [name for name, _ in candidates]
    edges = {name for name, m in candidates if _is_first(m)}
    edges = {min(edges, key=names.index)} if edges else set()
    patterns = layer_patterns(model, OUTPUT_LAYERS)
    patterns += [('', pattern) for pattern in qconfig.edges]
    edges.update(name for name in names if is_listed(name, patterns))
    sequences = layer_patterns(model, OUTPUT_SEQUENCES)
    return edges | _last_of_sequences(names, sequences)


def _is_first(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d)


def product_names(model: nn.Module) -> list[str]:
    """Return the names that points of a module's own products would have."""
    return [f'{name}.{CHILD}'.lstrip('.') for name, _ in open_modules(model)]


def is_listed(name: str, patterns: list[tuple[str, str]]) -> bool:
    """Whether a name has one of the prefixes and a pattern's rest."""
    return any(
        name.startswith(prefix) and matches(name[len(prefix) :], pattern)
        for prefix, pattern in patterns
    )


def _last_of_sequences(
    names: list[str], sequences: list[tuple[str, str]]
) -> set[str]:
    """Highest-numbered layer of each listed output network."""
    last: dict[str, tuple[int, str]] = {}
    for name in names:
        parent, _, index = name.rpartition('.')
        if index.isdigit() and is_listed(parent, sequences):
            last[parent] = max(last.get(parent, (-1, '')), (int(index), name))
    return {name for _, name in last.values()}


def _candidates(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Modules with a weight matrix, with attention, or float by design."""
    found = []
    for name, module in open_modules(model):
        if isinstance(module, QuantModule):
            raise ValueError(
                f'{name or type(model).__name__} is quantized already: '
                'prepare a fresh float model'
            )
        if (
            is_scripted(module)
            or lookup(module) is not None
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
    if is_scripted(module):
        return 'scripted: its layers cannot be reached'
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


def _row(plan: Plan, quant: QuantModule | None, reason: str) -> SwapRow:
    kind = type(plan.module).__name__
    if quant is None:
        return SwapRow(
            name=plan.name, type=kind, status='float', reason=reason
        )
    bits = bits_of(quant)
    return SwapRow(
        name=plan.name, type=kind, status='quantized', reason=reason, **bits
    )


def bits_of(quant: QuantModule) -> dict[str, int]:
    """Return the fewest bits of each kind of point, by field of its row."""
    bits: dict[str, int] = {}
    for name, quantizer in _own_quantizers(quant).items():
        if isinstance(quantizer, FloatQuantizer):
            continue
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
    return bits
