"""Pad channels-last maps with a value per channel where a host pads zeros.

Windows are cut from maps that are padded to their multiple. If a constant is
subtracted from each channel of such a map, what was 0 is now another value,
and the padding has to hold that value too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ['PAD_VALUE', 'ChannelPadding', 'pad_channels', 'zero_padding']

# Buffer of the padding module, (C,); part of its state dict.
PAD_VALUE = 'channel_pad_value'


def zero_padding(
    args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Tensor, tuple[int, ...]] | None:
    """Return tensor and amounts of a zero padding that spares channels.

    Args:
        args: Positional arguments of ``F.pad``.
        kwargs: Its keyword arguments.

    Returns:
        None if it pads otherwise, crops, or pads the last dimension.
    """
    names = ('input', 'pad', 'mode', 'value')
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    x, pads = given.get('input'), given.get('pad')
    if not isinstance(x, Tensor) or not isinstance(pads, list | tuple):
        return None
    amounts = tuple(int(amount) for amount in pads)
    plain = given.get('mode', 'constant') == 'constant'
    if not plain or given.get('value') not in (None, 0):
        return None
    if any(amounts[:2]) or min(amounts, default=0) < 0:
        return None
    return x, amounts


def pad_channels(x: Tensor, pads: Sequence[int], *, value: Tensor) -> Tensor:
    """Pad a map with one value for each channel.

    >>> x = torch.tensor([[1.0, 2.0]])  # one place, two channels
    >>> pad_channels(x, (0, 0, 1, 0), value=torch.tensor([5.0, 6.0]))
    tensor([[5., 6.],
            [1., 2.]])

    Args:
        x: (..., C).
        pads: Amounts before and after, the last dimension first, as for
            ``F.pad``; 0 for the channels.
        value: (C,).
    """
    value = value.to(x)
    for axis in range(1, len(pads) // 2):
        dim = x.dim() - 1 - axis
        before, after = (
            value.expand(*x.shape[:dim], amount, *x.shape[dim + 1 :])
            for amount in pads[2 * axis : 2 * axis + 2]
        )
        x = torch.cat([before, x, after], dim=dim)
    return x


class _Pads(TorchFunctionMode):
    """Replaces zero paddings of maps whose last dimension is the value's."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        found = zero_padding(args, kwargs) if func is F.pad else None
        if found is not None and found[0].shape[-1] == len(self.value):
            return pad_channels(*found, value=self.value)
        return func(*args, **kwargs)


class ChannelPadding:
    """Makes a module pad with its buffer ``channel_pad_value``, in place.

    Every zero padding of channels-last maps while the module runs, in its
    own forward and below, takes this value. Copies of the module have hooks
    of their own.

    Args:
        module: The module; its buffer holds zeros at first.
        channels: Channels of the maps that it pads.

    Raises:
        ValueError: If it has such a value already.
    """

    def __init__(self, module: nn.Module, *, channels: int) -> None:
        if hasattr(module, PAD_VALUE):
            raise ValueError(
                f'{type(module).__name__} already pads with a value of its '
                'own: rewrite it once'
            )
        like = next(module.parameters(), torch.zeros(()))
        module.register_buffer(PAD_VALUE, like.new_zeros(channels))
        hooks = _Hooks()
        self._module = module
        self._handles = (
            module.register_forward_pre_hook(hooks.before),
            # Even if the forward pass is cut short.
            module.register_forward_hook(hooks.after, always_call=True),
        )

    @property
    def value(self) -> Tensor:
        """(C,), sharing the buffer's memory."""
        found: Tensor = getattr(self._module, PAD_VALUE)
        return found

    def remove(self) -> None:
        """Let the module pad zeros again."""
        for handle in self._handles:
            handle.remove()
        delattr(self._module, PAD_VALUE)


class _Hooks:
    """Enter a mode before a module runs, and leave it afterwards."""

    def __init__(self) -> None:
        self._entered: list[ExitStack] = []

    def before(self, module: nn.Module, args: Any) -> None:
        del args
        stack = ExitStack()
        stack.enter_context(_Pads(getattr(module, PAD_VALUE)))
        self._entered.append(stack)

    def after(self, module: nn.Module, args: Any, output: Any) -> None:
        del module, args, output
        self._entered.pop().close()
