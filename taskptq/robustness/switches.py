"""Switches of a model: pooling, upsampling, box decoding, precision.

Each is a context manager that yields a :class:`Touched`: how many calls came
out otherwise because of it. None is a noise that is not applicable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from taskptq.robustness.boxes import box_offset
from taskptq.robustness.names import Noise
from taskptq.robustness.touched import Touched, replaced

__all__ = ['ceil_mode', 'model_noise', 'precision', 'upsampling']

# Function -> position of ceil_mode among its arguments.
POOLS = {'max_pool1d': 5, 'max_pool2d': 5, 'avg_pool1d': 4, 'avg_pool2d': 4}
DTYPES = {'float16': torch.float16, 'bfloat16': torch.bfloat16}
SMOOTH = ('bilinear', 'bicubic')


@contextmanager
def ceil_mode(model: nn.Module) -> Iterator[Touched]:
    """Round output sizes of strided pools the other way.

    Output size = (W - K + 2P) / S, rounded down or up, + 1. Sizes that divide
    evenly stay as they are.

    Args:
        model: The model, for its name only: every pool that runs is meant.
    """
    touched = Touched(
        none=f'{type(model).__name__} runs no pool whose output size depends '
        'on ceil_mode'
    )

    with ExitStack() as stack:
        for name, place in POOLS.items():
            pool = _other_pool(getattr(F, name), place=place, touched=touched)
            stack.enter_context(replaced(F, name, pool))
        yield touched


def _other_pool(
    pool: Callable[..., Any], *, place: int, touched: Touched
) -> Callable[..., Any]:
    """Turn the ceil_mode of a pooling function round."""

    def call(*args: Any, **kwargs: Any) -> Any:
        usual = pool(*args, **kwargs)
        if len(args) > place:
            args = (*args[:place], not args[place], *args[place + 1 :])
        else:
            kwargs['ceil_mode'] = not kwargs.get('ceil_mode', False)
        other = pool(*args, **kwargs)
        first = [x if isinstance(x, Tensor) else x[0] for x in (usual, other)]
        touched.count += first[0].shape != first[1].shape
        return other

    return call


@contextmanager
def upsampling(mode: str) -> Iterator[Touched]:
    """Enlarge maps by another mode.

    Args:
        mode: ``nearest``, ``bilinear``, or ``align-corners``, which turns
            that setting of smooth modes round.
    """
    none = f'the model enlarges no map otherwise than with {mode}'
    if mode == 'align-corners':
        none = 'the model enlarges no map with a smooth mode'
    touched = Touched(none=none)
    interpolate = F.interpolate

    def call(input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        names = ('size', 'scale_factor', 'mode', 'align_corners')
        kwargs |= dict(zip(names, args, strict=False))
        usual = interpolate(input, **kwargs)
        enlarged = (
            input.dim() == 4
            and input.is_floating_point()
            and usual.shape[2:] > input.shape[2:]
        )
        other = switched_mode(kwargs, mode) if enlarged else None
        if other is None:
            return usual
        touched.count += 1
        return interpolate(input, **other)

    with replaced(F, 'interpolate', call):
        yield touched


def switched_mode(options: dict[str, Any], mode: str) -> dict[str, Any] | None:
    """Return an interpolation's options in another mode, None if the same."""
    usual = options.get('mode', 'nearest')
    if mode == 'align-corners':
        if usual not in SMOOTH:
            return None
        return {**options, 'align_corners': not options.get('align_corners')}
    if usual.startswith(mode):
        return None
    other = {**options, 'mode': mode}
    other.pop('antialias', None)
    if mode == 'nearest':
        other.pop('align_corners', None)
    return other


def _rounded(value: Any, dtype: torch.dtype) -> Any:
    """Round floating tensors, in whatever holds them."""
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.to(dtype).to(value.dtype)
    if type(value) in (tuple, list):
        return type(value)(_rounded(item, dtype) for item in value)
    return value


@contextmanager
def precision(model: nn.Module, dtype: torch.dtype) -> Iterator[Touched]:
    """Store weights and each layer's output at another precision.

    Sums are still taken in float32, as tensor cores and vector units do.
    What overflows becomes infinite, as it would there.

    Args:
        model: Model to switch.
        dtype: ``torch.float16`` or ``torch.bfloat16``.
    """
    touched = Touched(none='the model has no floating weights')
    with ExitStack() as stack, torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if not tensor.is_floating_point():
                continue
            stack.callback(tensor.data.copy_, tensor.detach().clone())
            tensor.data.copy_(_rounded(tensor.data, dtype))
            touched.count += 1
        for layer in model.modules():
            if next(layer.children(), None) is None:
                handle = layer.register_forward_hook(
                    lambda _layer, _inputs, output: _rounded(output, dtype)
                )
                stack.callback(handle.remove)
        yield touched


@dataclass(frozen=True, kw_only=True)
class _Counts:
    """Counts of the switches that are on together."""

    by_kind: dict[str, Touched]

    def lacking(self) -> dict[str, str]:
        """Return kind -> reason of those that changed nothing."""
        return {
            kind: touched.none
            for kind, touched in self.by_kind.items()
            if not touched.count
        }


@contextmanager
def model_noise(
    model: nn.Module, noises: Sequence[Noise]
) -> Iterator[_Counts]:
    """Switch the model noises on.

    Args:
        model: Model to switch; it is as before afterwards.
        noises: Image noises among them are left out.

    Yields:
        ``by_kind``: kind -> :class:`Touched`, and ``lacking()``.
    """
    counts: dict[str, Touched] = {}
    with ExitStack() as stack:
        for noise in noises:
            switch: Any = None
            if noise.kind == 'ceil_mode':
                switch = ceil_mode(model)
            elif noise.kind == 'upsample':
                switch = upsampling(noise.option)
            elif noise.kind == 'box_offset':
                switch = box_offset(model, offset=float(noise.option))
            elif noise.kind == 'precision':
                switch = precision(model, DTYPES[noise.option])
            if switch is not None:
                counts[noise.kind] = stack.enter_context(switch)
        yield _Counts(by_kind=counts)
