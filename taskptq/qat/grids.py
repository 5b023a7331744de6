"""Change the quantizers of a prepared model from one stage to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from taskptq.core import Quantizer
from taskptq.modules.base import QuantModule, Scheme, quant_modules
from taskptq.prepare import QConfig, SwapReport
from taskptq.prepare.swap import bits_of, plan_swap
from taskptq.qat.stages import Stage

__all__ = ['enter_stage', 'leave_float', 'report_stage', 'schemes_of']

Schemes = Mapping[str, Scheme]
NO_BITS: dict[str, int | None] = dict.fromkeys(
    ('weight_bits', 'activation_bits', 'attention_bits', 'softmax_bits')
)


def schemes_of(model: nn.Module, qconfig: QConfig) -> dict[str, Scheme]:
    """Return the recipes of each layer's quantizers, by its name.

    Args:
        model: Float model, before anything is folded or swapped.
        qconfig: Recipe.

    Raises:
        ValueError: See ``taskptq.prepare.swap.plan_swap``.
    """
    return {
        plan.name: plan.scheme
        for plan in plan_swap(model, qconfig)
        if plan.cls is not None
    }


def enter_stage(
    model: nn.Module,
    stage: Stage,
    *,
    schemes: Schemes,
    before: Schemes,
) -> None:
    """Give every layer the quantizers of a stage, in place.

    A calibrated quantizer of the same recipe stays, with what it learned.
    Those outside of the stage's parts have no observer: they are never
    calibrated and pass their inputs through.

    Args:
        model: Prepared model.
        stage: The stage.
        schemes: Recipes of its quantizers; layers without one stay float.
        before: Recipes of the quantizers that the model has now.
    """
    for name, module in list(quant_modules(model)):
        if name not in schemes and name not in before:
            continue
        old = own_quantizers(module)
        was, scheme = before.get(name, Scheme()), schemes.get(name, Scheme())
        device = next(module.parameters()).device
        module.add_quantizers(scheme)
        for child, quantizer in own_quantizers(module).items():
            point = point_of(module, child)
            kept = old.get(child)
            if (
                kept is not None
                and kept.calibrated
                and getattr(was, point) == getattr(scheme, point)
            ):
                setattr(module, child, kept)
            else:
                quantizer.to(device)
                quantizer.enabled = False
    leave_float(model, stage)


def own_quantizers(module: QuantModule) -> dict[str, Quantizer]:
    """Return a layer's quantizers by the name of the child."""
    return {
        name: child
        for name, child in module.named_children()
        if isinstance(child, Quantizer)
    }


def point_of(module: QuantModule, child: str) -> str:
    """Return the field of ``Scheme`` that a quantizer was built from."""
    if child in module.weight_slots.values():
        return 'weight'
    if child.endswith('input_quantizer'):
        return 'activation'
    point = child.removesuffix('_quantizer')
    return point if hasattr(Scheme(), point) else 'activation'


def leave_float(model: nn.Module, stage: Stage) -> None:
    """Remove the observers outside of the parts that a stage quantizes."""
    for name, module in model.named_modules():
        if isinstance(module, Quantizer) and not stage.contains(name):
            module.observer = None


def report_stage(
    model: nn.Module, planned: SwapReport, stage: Stage, *, title: str
) -> SwapReport:
    """Return a report whose rows say what a stage quantizes.

    Args:
        model: Prepared model, in this stage.
        planned: Report of the preparation.
        stage: The stage.
        title: How the report names it.
    """
    modules = dict(quant_modules(model))
    rows = []
    for row in planned.rows:
        bits = bits_of(modules[row.name]) if row.name in modules else {}
        if row.status != 'float' and not (stage.contains(row.name) and bits):
            row = replace(
                row,
                status='float',
                reason=f'{title} quantizes only the {", ".join(stage.parts)}'
                if bits
                else f'{title} leaves it float',
                **NO_BITS,
            )
        elif row.status != 'float':
            row = replace(row, **{**NO_BITS, **bits})
        rows.append(row)
    return replace(planned, rows=rows)
