"""Calibration: one pass over the data sets every range."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.calibration.images import constant_images
from taskptq.calibration.products import settle_products
from taskptq.calibration.unreached import (
    CHOICES,
    activation_quantizers,
    find_unreached,
    leave_float,
)
from taskptq.core import observing
from taskptq.core.progress import Progress
from taskptq.core.quantizers import Quantizer
from taskptq.core.reduce import reduce_observers
from taskptq.modules.base import QuantModule, quant_modules
from taskptq.modules.product_mode import learning

Forward = Callable[[nn.Module, Any], Any]

logger = logging.getLogger('taskptq')


@dataclass(kw_only=True)
class CalibrationReport:
    """Report of a calibration.

    Args:
        num_batches: Batches run by this rank.
        seconds: Wall time.
        unobserved: Activation quantizers that saw no data and therefore
            stay float, usually in layers that only training runs.
        left_float: Counterparts that stay float with their weights, by
            name, and the reason.
        covering: Indices of batches of this rank that together call every
            counterpart that any batch calls; the first batch is included.
        warnings: Warnings for the user.
        softmax: Result of each softmax grid search, by quantizer; see
            ``taskptq.methods.ptq4sam.granularity.Granularity``.
    """

    num_batches: int = 0
    seconds: float = 0.0
    unobserved: list[str] = field(default_factory=list)
    left_float: dict[str, str] = field(default_factory=dict)
    covering: list[int] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    softmax: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types."""
        return dict(vars(self))


@contextmanager
def calibration_mode(model: nn.Module) -> Iterator[None]:
    """Run calibration forwards: eval mode, without gradients."""
    was_training = [m for m in model.modules() if m.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in was_training:
            module.training = True


def calibrate(
    model: nn.Module,
    batches: Sequence[Any],
    *,
    forward: Forward,
    unreached: str = 'error',
) -> CalibrationReport:
    """Set the ranges of all quantizers.

    Parts that only training runs stay float, as do layers whose weights are
    read by others without a call.

    Args:
        model: Swapped model.
        batches: Collated data batches (this rank's share).
        forward: Runs the model on one batch.
        unreached: What to do if no batch reached some other quantizer:
            'error', or 'float' to leave its module float.

    Raises:
        ValueError: If there is no batch, a weight or an activation is not
            finite, or no batch reached a quantizer; names the layer.
    """
    if unreached not in CHOICES:
        raise ValueError(
            f'unreached={unreached!r}: choose one of {", ".join(CHOICES)}'
        )
    if not batches:
        raise ValueError('calibration set is empty: give at least one batch')
    start = time.perf_counter()
    _check_weights(model)
    watch = _Watch(model)
    shown = Progress('calibrate', total=len(batches))
    met = learning(model, observing=True)
    with calibration_mode(model), observing(model), watch.active(), met, shown:
        for i, batch in enumerate(batches):
            watch.batch = i
            forward(model, batch)
            shown.advance()
    settle_products(model)
    activations = activation_quantizers(model)
    reduce_observers([q.observer for _, q in activations if q.observer])
    found = find_unreached(
        model,
        called=watch.first_calls,
        batch=batches[0],
        forward=forward,
        unreached=unreached,
    )
    leave_float(model, found.left_float)
    for _, quantizer in activations:
        quantizer.calibrate()
    for _, module in quant_modules(model):
        module.calibrate_weights()
    return CalibrationReport(
        num_batches=len(batches),
        seconds=time.perf_counter() - start,
        unobserved=found.quantizers,
        left_float=found.left_float,
        covering=sorted({0, *watch.first_calls.values()}),
        warnings=_warnings(batches, watch),
        softmax={
            name: found_by
            for name, quantizer in activations
            if (found_by := quantizer.report()) is not None
        },
    )


@torch.no_grad()
def _check_weights(model: nn.Module) -> None:
    """Refuse weights that aren't finite, before any work."""
    for name, module in quant_modules(model):
        for parameter, slot in module.active_slots():
            quantizer = getattr(module, slot)
            weight: Tensor = getattr(module, parameter)
            if quantizer is None or quantizer.observer is None:
                continue
            # Ends first: a tenth of the time of looking at each value.
            if weight.numel() and all(
                end.isfinite() for end in weight.detach().aminmax()
            ):
                continue
            bad = weight.numel() - int(weight.isfinite().sum())
            if bad:
                raise ValueError(
                    f'{name}.{parameter} holds NaN or infinity in {bad} of '
                    f'{weight.numel()} values: check the float checkpoint, '
                    'or leave the layer float with qconfig.keep_float'
                )


def _warnings(batches: Sequence[Any], watch: _Watch) -> list[str]:
    """Log and return warnings about suspicious calibration images."""
    found = []
    constant, total = constant_images(batches)
    if constant:
        found.append(
            f'{constant} of {total} calibration images have a single color, '
            'and a model with ranges from such images may detect nothing: '
            'check the calibration set'
        )
    elif watch.is_constant:
        found.append(
            f'the input of {watch.first_quantizer} is {watch.low:g} '
            f'everywhere in all {len(batches)} calibration batches: check '
            'the calibration images and the preprocessing'
        )
    for text in found:
        logger.warning(text)
    return found


class _Watch:
    """Record which batch first calls each counterpart.

    Also adds the quantizer's name to errors of its observer.
    """

    def __init__(self, model: nn.Module) -> None:
        self.batch = 0
        self.first_calls: dict[str, int] = {}
        self.first_quantizer = ''
        self.low = float('inf')
        self.high = float('-inf')
        self._current = ''
        self._names: dict[nn.Module, str] = {
            module: name
            for name, module in model.named_modules()
            if isinstance(module, Quantizer | QuantModule)
        }

    @property
    def is_constant(self) -> bool:
        """Whether the first quantizer saw only one value."""
        return self.low == self.high

    @contextmanager
    def active(self) -> Iterator[None]:
        """Watch the calls inside."""
        handles = [
            module.register_forward_pre_hook(self._see)
            for module in self._names
        ]
        try:
            yield
        except ValueError as error:
            if 'NaN or infinity' not in str(error):
                raise
            raise ValueError(
                f'{self._current}: {error}; check the float model and its '
                'input normalisation, or leave the layer float with '
                'qconfig.keep_float'
            ) from error
        finally:
            for handle in handles:
                handle.remove()

    def _see(self, module: nn.Module, args: Any) -> None:
        name = self._names[module]
        if not isinstance(module, Quantizer):
            self.first_calls.setdefault(name, self.batch)
            return
        self._current = name
        # A host may bypass a layer's hooks by calling forward, but not those
        # of its quantizers.
        self.first_calls.setdefault(name.rpartition('.')[0], self.batch)
        self.first_quantizer = self.first_quantizer or name
        if name == self.first_quantizer and args[0].numel():
            low, high = args[0].aminmax()
            self.low = min(self.low, float(low))
            self.high = max(self.high, float(high))
