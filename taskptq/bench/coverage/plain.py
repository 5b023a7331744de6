"""A quantizer that shares no code with the package, to compare with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

# Products whose first two arguments are quantized.
PRODUCTS: frozenset[Callable[..., Any]] = frozenset({
    F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d,
    F.linear, torch.matmul, torch.bmm, torch.mm, Tensor.matmul,
    Tensor.__matmul__, Tensor.bmm, Tensor.mm, torch.conv1d, torch.conv2d,
    torch.conv_transpose2d,
})  # fmt: skip
TRANSPOSED = frozenset({
    F.conv_transpose1d, F.conv_transpose2d, torch.conv_transpose2d
})  # fmt: skip


class PlainQuantization(TorchFunctionMode):
    """Round the operands of every product to 8 bits, ranges by min and max.

    Weights per output channel and symmetric, all else per tensor and
    asymmetric, by the range of the very tensor.
    """

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Quantize the operands of a product, then call it."""
        if func in PRODUCTS and len(args) > 1:
            axis = 1 if func in TRANSPOSED else 0
            with torch._C.DisableTorchFunctionSubclass():
                args = (
                    *(_quantized(x, axis=axis) for x in args[:2]),
                    *args[2:],
                )
        return func(*args, **(kwargs or {}))


def _quantized(x: Any, *, axis: int) -> Any:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return x
    if not x.numel():
        return x
    if isinstance(x, nn.Parameter) and x.dim() > 1:
        others = [d for d in range(x.dim()) if d != axis]
        scale = x.abs().amax(others, keepdim=True) / 127
        scale = scale.clamp_min(1e-12)
        return (x / scale).round().clamp(-127, 127) * scale
    low, high = x.min().clamp_max(0), x.max().clamp_min(0)
    scale = ((high - low) / 255).clamp_min(1e-12)
    zero = (-low / scale).round()
    return ((x / scale + zero).round().clamp(0, 255) - zero) * scale
