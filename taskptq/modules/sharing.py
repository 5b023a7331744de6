"""Tensors that several projections read: quantized once, not per reader."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from taskptq.modules.attention import quantized
from taskptq.modules.base import QuantModule, Scheme, build_quantizer
from taskptq.modules.linear import QuantLinear


def same_tensor(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are one, or the same view of one memory.

    Hosts transpose the arguments of an attention one by one, which makes
    new objects of a tensor given twice.
    """
    return a is b or (
        a.numel() > 0
        and a.data_ptr() == b.data_ptr()
        and a.shape == b.shape
        and a.stride() == b.stride()
        and a.dtype == b.dtype
        and a.requires_grad == b.requires_grad
    )


def own_or_shared(own: Any, shared: Any) -> Any:
    """Return the quantizer of an input that may have been shared.

    A tensor shared while calibrating leaves its own quantizer unset; where
    it comes back as a copy (a cached input of a unit), the range is the
    shared one's.
    """
    if own is None or own.calibrated or own.observing:
        return own
    return shared


class SharedInputs(QuantModule):
    """Mixin: an attention whose child projections read common tensors.

    The attention owns one quantizer per common tensor; the readers' own
    input quantizers are then needless and :func:`share_inputs` drops them.
    """

    def shared_inputs(self) -> dict[str, tuple[str, ...]]:
        """Return quantizer name -> names of the children that read."""
        raise NotImplementedError

    def add_quantizers(self, scheme: Scheme) -> None:
        """Register one input quantizer per common tensor."""
        super().add_quantizers(scheme)
        for point in self.shared_inputs():
            setattr(self, point, build_quantizer(scheme.activation))

    def project(self, point: str, x: Tensor) -> tuple[Tensor, ...]:
        """Quantize a common tensor and give it to all its readers.

        Args:
            point: Name of the quantizer, a key of ``shared_inputs()``.
            x: The common tensor, (..., C_in). Readers left float read it
                as it is.

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

    Needed once after the children of all attentions are swapped.

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
