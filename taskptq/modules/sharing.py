"""Quantize once a tensor that several projections read."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from taskptq.modules.attention import quantized
from taskptq.modules.base import QuantModule, Scheme, build_quantizer
from taskptq.modules.linear import QuantLinear
from taskptq.modules.memory import same_start


def same_tensor(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same view of the same memory.

    Hosts transpose the arguments of an attention one by one, which turns a
    tensor that is passed twice into two objects.

    >>> import torch
    >>> x = torch.zeros(2, 3)
    >>> same_tensor(x.t(), x.t()), same_tensor(x, x.clone())
    (True, False)
    """
    return a is b or (
        a.numel() > 0
        and same_start(a, b)
        and a.shape == b.shape
        and a.stride() == b.stride()
        and a.dtype == b.dtype
        and a.requires_grad == b.requires_grad
    )


def own_or_shared(own: Any, shared: Any) -> Any:
    """Return the quantizer of an input that may have been shared.

    If the tensor was shared during calibration, its own quantizer has no
    range. If it later arrives as a copy (a cached input of a unit), the
    shared quantizer's range applies.
    """
    if own is None or own.calibrated or own.observing:
        return own
    return shared


class SharedInputs(QuantModule):
    """Mixin for attentions whose child projections read common tensors.

    The attention owns one quantizer per common tensor; :func:`share_inputs`
    drops the readers' own input quantizers.
    """

    def shared_inputs(self) -> dict[str, tuple[str, ...]]:
        """Return quantizer name -> names of the children that read it."""
        raise NotImplementedError

    def add_quantizers(self, scheme: Scheme) -> None:
        """Register one input quantizer per common tensor."""
        super().add_quantizers(scheme)
        for point in self.shared_inputs():
            setattr(self, point, build_quantizer(scheme.activation))

    def project(self, point: str, x: Tensor) -> tuple[Tensor, ...]:
        """Quantize a common tensor and pass it to all its readers.

        Args:
            point: Name of the quantizer, a key of ``shared_inputs()``.
            x: The common tensor, (..., C_in). Readers left float get the
                float tensor.

        Returns:
            The readers' outputs in the order of ``shared_inputs()``.
        """
        quantizer = getattr(self, point)
        x_hat = quantized(quantizer, x)
        outputs = []
        for name in self.shared_inputs()[point]:
            reader = getattr(self, name)
            if quantizer is not None and isinstance(reader, QuantLinear):
                outputs.append(reader(x_hat, input_quantized=True))
            else:
                outputs.append(reader(x))
        return tuple(outputs)


def share_inputs(model: nn.Module) -> list[str]:
    """Drop the input quantizers of projections that read a common tensor.

    Call it once, after swapping the children of all attentions.

    Returns:
        Qualified names of the dropped quantizers.
    """
    dropped = []
    for name, module in model.named_modules():
        if not isinstance(module, SharedInputs):
            continue
        for point, readers in module.shared_inputs().items():
            for reader in readers:
                child = getattr(module, reader, None)
                if getattr(module, point) is None:
                    continue
                if isinstance(child, QuantLinear) and (
                    child.input_quantizer is not None
                ):
                    child.input_quantizer = None
                    path = f'{reader}.input_quantizer'
                    dropped.append(f'{name}.{path}' if name else path)
    return dropped
