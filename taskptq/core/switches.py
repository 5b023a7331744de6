"""Contexts that switch a model's quantizers and restore them on exit."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from taskptq.core.quantizers import Quantizer


def quantizers(model: nn.Module) -> Iterator[tuple[str, Quantizer]]:
    """Yield (qualified name, quantizer) over a module tree."""
    for name, module in model.named_modules():
        if isinstance(module, Quantizer):
            yield name, module


def is_weight_quantizer(name: str) -> bool:
    """Whether a qualified name is that of a weight quantizer.

    >>> is_weight_quantizer('neck.0.weight_quantizer')
    True
    >>> is_weight_quantizer('neck.0.input_quantizer')
    False
    """
    return name.rpartition('.')[2].endswith('weight_quantizer')


@contextmanager
def _switched(
    model: nn.Module,
    *,
    observing: bool,
    weights: bool,
    activations: bool,
    transforming: bool = False,
) -> Iterator[None]:
    found = list(quantizers(model))
    before = [(q, q.enabled, q.observing, q.transform_only) for _, q in found]
    try:
        for name, quantizer in found:
            is_weight = is_weight_quantizer(name)
            quantizer.enabled = weights if is_weight else activations
            quantizer.observing = observing and not is_weight
            quantizer.transform_only = transforming
        yield
    finally:
        for quantizer, enabled, was_observing, transform_only in before:
            quantizer.enabled = enabled
            quantizer.observing = was_observing
            quantizer.transform_only = transform_only


@contextmanager
def observing(model: nn.Module) -> Iterator[None]:
    """Run the float model while activation observers collect."""
    with _switched(model, observing=True, weights=False, activations=False):
        yield


@contextmanager
def quantizing(
    model: nn.Module, *, weights: bool = True, activations: bool = True
) -> Iterator[None]:
    """Run with weight and/or activation quantizers enabled.

    >>> import torch
    >>> from taskptq.core import AffineQuantizer, QuantSpec
    >>> model = AffineQuantizer(QuantSpec(num_bits=2))
    >>> model.set_bounds(signed=False)
    >>> model.set_range(torch.tensor([0.0]), torch.tensor([3.0]))
    >>> x = torch.tensor([0.4, 1.8])
    >>> with quantizing(model, weights=False):
    ...     model(x)
    tensor([0., 2.])
    >>> model(x)
    tensor([0.4000, 1.8000])
    """
    with _switched(
        model, observing=False, weights=weights, activations=activations
    ):
        yield


@contextmanager
def float_only(model: nn.Module) -> Iterator[None]:
    """Run the float model: every quantizer passes through."""
    with _switched(model, observing=False, weights=False, activations=False):
        yield


@contextmanager
def transforming(model: nn.Module) -> Iterator[None]:
    """Run the float model with the transforms that quantizers apply.

    Nothing is rounded, so this measures the loss from the transforms alone,
    such as the alignment of queries.
    """
    with _switched(
        model,
        observing=False,
        weights=False,
        activations=False,
        transforming=True,
    ):
        yield


@contextmanager
def dropping(model: nn.Module, *, drop_prob: float) -> Iterator[None]:
    """Set the drop probability of the activation quantizers (QDrop).

    Raises:
        ValueError: If ``drop_prob`` lies outside [0, 1].
    """
    if not 0 <= drop_prob <= 1:
        raise ValueError(f'drop_prob={drop_prob} must lie in [0, 1]')
    found = [
        quantizer
        for name, quantizer in quantizers(model)
        if not is_weight_quantizer(name)
    ]
    before = [quantizer.drop_prob for quantizer in found]
    try:
        for quantizer in found:
            quantizer.drop_prob = drop_prob
        yield
    finally:
        for quantizer, value in zip(found, before, strict=True):
            quantizer.drop_prob = value


def enable(model: nn.Module) -> None:
    """Enable every quantizer permanently, for evaluation."""
    for _, quantizer in quantizers(model):
        quantizer.enabled = True
        quantizer.observing = False
        quantizer.transform_only = False
