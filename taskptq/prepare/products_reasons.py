"""Why an operand of a counterpart's product is float."""

from __future__ import annotations

from typing import Any

from taskptq.core import Quantizer
from taskptq.modules.attention import QuantAttention
from taskptq.modules.base import QuantModule


def reason_of_layer(
    layer: QuantModule, function: str, floats: list[str], stored: list[str]
) -> str:
    """Name the operands of a counterpart that are float."""
    if isinstance(layer, QuantAttention) or len(layer.weight_slots) != 1:
        named = f'{" and ".join(floats)} operand of {function}'
        tables = f' ({stored[0]})' if stored else ''
        return f'{named} is float{tables}'
    operands = {'first': 'input', 'second': 'weight'}
    points = {
        'first': getattr(layer, 'input_quantizer', None),
        'second': getattr(layer, next(iter(layer.weight_slots.values()))),
    }
    parts = []
    for position in floats:
        off = points[position] is not None and not is_on(points[position])
        why = 'was not calibrated' if off else 'is float'
        parts.append(f'{operands[position]} {why}')
    return ', '.join(parts)


def is_on(quantizer: Any) -> bool:
    """Whether what a quantizer gives lies on its grid now."""
    return bool(
        isinstance(quantizer, Quantizer)
        and quantizer.enabled
        and quantizer.calibrated
        and quantizer.drop_prob == 0
    )
