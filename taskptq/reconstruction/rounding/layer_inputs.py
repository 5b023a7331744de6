"""Listen to the inputs that the weights of a counterpart multiply."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from taskptq.modules.base import QuantModule
from taskptq.modules.multihead_attention import QuantMultiheadAttention

# Receives the operand ('weight', or one of 'query', 'key' and 'value' by its
# first letter) and the tensor.
Receiver = Callable[[str, Tensor], None]


def matmul_of(layer: QuantModule) -> nn.Module | None:
    """Return the layer whose moments are meant; None for projections."""
    return None if isinstance(layer, QuantMultiheadAttention) else layer


@contextmanager
def listening(layer: QuantModule, receive: Receiver) -> Iterator[None]:
    """Hand on each input of a layer, as quantized as it is then.

    Args:
        layer: Counterpart of a convolution, linear or attention.
        receive: Called once per operand and call.
    """

    def single(layer: nn.Module, args: Any, kwargs: Any) -> None:
        x = args[0] if args else kwargs['x']
        if not kwargs.get('input_quantized', False):
            x = _quantized(layer, 'input_quantizer', x)
        if x.numel():
            receive('weight', x)

    def projections(layer: nn.Module, args: Any, kwargs: Any) -> None:
        named = dict(zip(('query', 'key', 'value'), args, strict=False))
        named |= {
            k: kwargs[k] for k in ('query', 'key', 'value') if k in kwargs
        }
        points = ('input', 'key_input', 'value_input')
        seen: dict[int, Tensor] = {}
        for (name, x), point in zip(named.items(), points, strict=True):
            if id(x) not in seen:  # a shared tensor is quantized once
                seen[id(x)] = _quantized(layer, f'{point}_quantizer', x)
            receive(name[0], seen[id(x)])

    is_attention = isinstance(layer, QuantMultiheadAttention)
    hook = projections if is_attention else single
    handle = layer.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _quantized(layer: nn.Module, name: str, x: Tensor) -> Tensor:
    quantizer = getattr(layer, name, None)
    if quantizer is None:
        return x
    quantize_input = getattr(layer, 'quantized_input', quantizer)
    out: Tensor = quantize_input(x)
    return out


def by_rows(
    found: dict[str, Any], layer: QuantModule, parameter: str
) -> list[tuple[slice, Any]]:
    """Return what belongs to each row range of a weight.

    Args:
        found: By operand, see :data:`Receiver`.
        layer: Its layer.
        parameter: Name of the weight.

    Returns:
        (rows, value) pairs: three of a fused projection, else one; none for
        a weight that saw no input.
    """
    whole = slice(0, None)
    if not found:
        return []
    if 'weight' in found:
        return [(whole, found['weight'])]
    if parameter != 'in_proj_weight':
        return [(whole, found[parameter[0]])]
    embed = getattr(layer, parameter).shape[0] // 3
    return [
        (slice(i * embed, (i + 1) * embed), found[key])
        for i, key in enumerate('qkv')
    ]
