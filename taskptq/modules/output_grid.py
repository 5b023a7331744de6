"""A quantizer on the output of any module."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from taskptq.core import Quantizer

CHILD = 'output_quantizer'


def quantize_output(module: nn.Module, _: Any, out: Tensor) -> Tensor:
    """Quantize what a module returns; a forward hook."""
    quantized: Tensor = module._modules[CHILD](out)  # type: ignore[misc]
    return quantized


def add_output_grid(module: nn.Module, quantizer: Quantizer) -> None:
    """Give a module a quantizer for its output, as ``output_quantizer``.

    >>> import torch
    >>> from taskptq.core import AffineQuantizer, QuantSpec
    >>> quantizer = AffineQuantizer(QuantSpec(num_bits=2))
    >>> quantizer.set_bounds(signed=False)
    >>> quantizer.set_range(torch.tensor([0.0]), torch.tensor([3.0]))
    >>> quantizer.enabled = True
    >>> relu = nn.ReLU()
    >>> add_output_grid(relu, quantizer)
    >>> relu(torch.tensor([-1.0, 1.2, 9.0]))
    tensor([0., 1., 3.])

    Args:
        module: Any module that returns a tensor.
        quantizer: Its quantizer; several modules may have one in common.

    Raises:
        ValueError: If it has one already.
    """
    if CHILD in module._modules:
        raise ValueError(f'{type(module).__name__} has an output grid already')
    module.add_module(CHILD, quantizer)
    module.register_forward_hook(quantize_output)
