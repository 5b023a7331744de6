"""Calibration: one pass over the data sets every range."""
from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from taskptq.core import PowerOfTwoQuantizer, observing
from taskptq.core.quantizers import Quantizer
from taskptq.core.reduce import reduce_observers
from taskptq.core.state import is_weight_quantizer, quantizers
from taskptq.modules.base import quant_modules
from taskptq.modules.multihead_attention import QuantMultiheadAttention
from taskptq.modules.sam_attention import QuantSamDecoderAttention

Forward = Callable[[nn.Module, Any], Any]

# Attentions that see at each call which of their inputs are one tensor.
SHARING = (QuantMultiheadAttention, QuantSamDecoderAttention)


@dataclass(kw_only=True)
class CalibrationReport:
    """What calibration did.

    Args:
        num_batches: Batches run by this rank.
        seconds: Wall time.
        unobserved: Activation quantizers that saw no data and therefore
            stay float; layers that only training runs are the usual case.
        softmax: What the search of each softmax grid found, by quantizer:
            see ``taskptq.core.granularity.Granularity``.
    """

    num_batches: int = 0
    seconds: float = 0.0
    unobserved: list[str] = field(default_factory=list)
    softmax: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types."""
        return dict(vars(self))


@contextmanager
def calibration_mode(model: nn.Module) -> Iterator[None]:
    """The one context of all calibration forwards: eval mode, no gradient."""
    was_training = [m for m in model.modules() if m.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in was_training:
            module.training = True


def calibrate(
    model: nn.Module, batches: Sequence[Any], *, forward: Forward
) -> CalibrationReport:
    """Set the ranges of all quantizers.

    Args:
        model: Swapped model.
        batches: Collated data batches (this rank's share).
        forward: Runs the model on one batch.

    Raises:
        ValueError: If there is no batch, or an activation is not finite (the
            quantizer's name is in the message).
    """
    if not batches:
        raise ValueError('calibration set is empty: give at least one batch')
    start = time.perf_counter()
    for _, module in quant_modules(model):
        module.calibrate_weights()
    with calibration_mode(model), observing(model), _named_errors(model):
        for batch in batches:
            forward(model, batch)
    activations = [
        (name, quantizer)
        for name, quantizer in quantizers(model)
        if not is_weight_quantizer(name) and quantizer.observer is not None
    ]
    reduce_observers([q.observer for _, q in activations if q.observer])
    missing = {name for name, q in activations if not q.calibrate()}
    unobserved = [
        name
        for name, _ in activations
        if name in missing and not _is_shared(model, name, missing)
    ]
    return CalibrationReport(
        num_batches=len(batches),
        seconds=time.perf_counter() - start,
        unobserved=unobserved,
        softmax={
            name: quantizer.granularity.to_dict()
            for name, quantizer in activations
            if isinstance(quantizer, PowerOfTwoQuantizer)
            and quantizer.granularity is not None
        },
    )


def _is_shared(model: nn.Module, name: str, missing: set[str]) -> bool:
    """Whether an unset quantizer is one that a shared input leaves unused.

    An attention whose key is its query (or its value its key) quantizes the
    tensor once, by the quantizer of the former.
    """
    owner, _, point = name.rpartition('.')
    return (
        point in ('key_input_quantizer', 'value_input_quantizer')
        and isinstance(model.get_submodule(owner), SHARING)
        and f'{owner}.input_quantizer'.lstrip('.') not in missing
    )


@contextmanager
def _named_errors(model: nn.Module) -> Iterator[None]:
    """Add the quantizer's name to an error that its observer raises."""
    current: list[str] = ['']
    names = {id(q): name for name, q in quantizers(model)}

    def remember(module: nn.Module, _: Any) -> None:
        current[0] = names[id(module)]

    handles = [
        module.register_forward_pre_hook(remember)
        for module in model.modules()
        if isinstance(module, Quantizer)
    ]
    try:
        yield
    except ValueError as error:
        if 'NaN or infinity' not in str(error):
            raise
        raise ValueError(
            f'{current[0]}: {error}; check the float model and its input '
            'normalisation, or leave the layer float with qconfig.keep_float'
        ) from error
    finally:
        for handle in handles:
            handle.remove()
