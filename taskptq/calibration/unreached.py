"""Quantizers that calibration didn't reach: leave them float, or refuse."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from taskptq.core import Quantizer
from taskptq.core.distributed import gathered
from taskptq.core.switches import is_weight_quantizer, quantizers
from taskptq.hosts.registry import TRAINING_ONLY, dotted
from taskptq.modules.base import quant_modules
from taskptq.modules.multihead_attention import QuantMultiheadAttention
from taskptq.modules.sam_attention import QuantSamDecoderAttention
from taskptq.prepare.products import read_past

Forward = Callable[[nn.Module, Any], Any]

CHOICES = ('error', 'float')
MAX_NAMED = 5
# Attentions that compare their input tensors at each call.
SHARING = (QuantMultiheadAttention, QuantSamDecoderAttention)


@dataclass(kw_only=True)
class Unreached:
    """Quantizers and counterparts without a range.

    Args:
        quantizers: Activation quantizers that saw no data.
        left_float: Counterparts to leave float, by name, and the reason.
    """

    quantizers: list[str] = field(default_factory=list)
    left_float: dict[str, str] = field(default_factory=dict)


def find_unreached(
    model: nn.Module,
    *,
    called: Collection[str],
    batch: Any,
    forward: Forward,
    unreached: str,
) -> Unreached:
    """Find what calibration did not reach; the same on all ranks.

    Args:
        model: Model whose observers have seen the data of all ranks.
        called: Counterparts that this rank called.
        batch: Batch to rerun if layers went unreached, to see whether
            others read their weights.
        forward: Runs the model on a batch.
        unreached: 'error' or 'float'.

    Raises:
        ValueError: If counterparts that evaluation may call were not
            reached, and ``unreached`` is 'error'.
    """
    unset = {
        name
        for name, quantizer in activation_quantizers(model)
        if quantizer.observer is not None and not quantizer.observer.observed
    }
    missing = [
        name
        for name, _ in activation_quantizers(model)
        if name in unset and not _is_shared(model, name, unset)
    ]
    reached = {name for names in gathered(set(called)) for name in names}
    idle = _idle_layers(model, set(missing), reached)
    training = _training_only(model)
    reasons = {
        name: 'only training runs it'
        for name in idle
        if any(_is_in(name, part) for part in training)
    }
    lost = [name for name in _owners(missing) if name not in reasons]
    if lost:
        readers: dict[str, str] = {}
        for found in gathered(read_past(model, batch, forward=forward)):
            readers.update(found)
        reasons |= {
            name: f'{readers[name] or "the model"} reads its weight without '
            'calling it'
            for name in lost
            if name in readers and name in idle
        }
    lost = [name for name in lost if name not in reasons]
    if lost and unreached == 'error':
        raise ValueError(_refusal(lost))
    reasons |= {
        name: "no calibration image reached it (unreached='float')"
        for name in lost
        if name in idle
    }
    return Unreached(
        quantizers=missing, left_float=_with_children(reasons, idle)
    )


def activation_quantizers(model: nn.Module) -> list[tuple[str, Quantizer]]:
    """Return (qualified name, quantizer) pairs to calibrate with data."""
    return [
        (name, quantizer)
        for name, quantizer in quantizers(model)
        if not is_weight_quantizer(name) and quantizer.observer is not None
    ]


def leave_float(model: nn.Module, names: Collection[str]) -> None:
    """Drop the observers of counterparts, so that they stay float.

    A layer with quantized weights and float inputs would not run in
    integers. Quantizers without a range are saved and restored empty.
    """
    layers = dict(quant_modules(model))
    for name in names:
        for child in layers[name].children():
            if isinstance(child, Quantizer):
                child.observer = None


def _idle_layers(
    model: nn.Module, missing: set[str], reached: set[str]
) -> list[str]:
    """Return the counterparts that never ran, in definition order.

    Activation quantizers decide; without one, recorded calls do.
    """
    idle: list[str] = []
    for name, module in quant_modules(model):
        points = [
            f'{name}.{point}'.lstrip('.')
            for point, child in module.named_children()
            if isinstance(child, Quantizer)
            and child.observer is not None
            and not is_weight_quantizer(point)
        ]
        seen = [point for point in points if point not in missing]
        if not (seen if points else name in reached):
            idle.append(name)
    return idle


def _training_only(model: nn.Module) -> list[str]:
    """Return the qualified names of parts that evaluation never calls."""
    found = []
    for name, module in model.named_modules():
        listed = set(TRAINING_ONLY[''])
        for cls in type(module).__mro__:
            listed.update(TRAINING_ONLY.get(dotted(cls), ()))
        found += [
            f'{name}.{child}' if name else child
            for child, _ in module.named_children()
            if child in listed
        ]
    return found


def _with_children(
    reasons: Mapping[str, str], idle: Collection[str]
) -> dict[str, str]:
    """Add the projections of attentions, which only run with them."""
    found = {}
    for name in idle:
        owners = [owner for owner in reasons if _is_in(name, owner)]
        if owners:
            found[name] = reasons[max(owners, key=len)]
    return found


def _owners(points: Collection[str]) -> list[str]:
    return list(dict.fromkeys(name.rpartition('.')[0] for name in points))


def _is_in(name: str, part: str) -> bool:
    return name == part or name.startswith(f'{part}.')


def _refusal(lost: list[str]) -> str:
    more = f' and {len(lost) - MAX_NAMED} more' if lost[MAX_NAMED:] else ''
    return (
        f'no calibration image reached {", ".join(lost[:MAX_NAMED])}{more}: '
        'calibrate with more images or a lower score threshold in '
        'model.test_cfg, leave these layers float with qconfig.keep_float, '
        "or set calibration.unreached='float'"
    )


def _is_shared(model: nn.Module, name: str, missing: set[str]) -> bool:
    """Whether a quantizer has no range because its input is shared.

    An attention whose key is its query (or whose value is its key) quantizes
    the tensor once, by the first one's quantizer.
    """
    owner, _, point = name.rpartition('.')
    return (
        point in ('key_input_quantizer', 'value_input_quantizer')
        and isinstance(model.get_submodule(owner), SHARING)
        and f'{owner}.input_quantizer'.lstrip('.') not in missing
    )
