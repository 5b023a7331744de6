"""Calls without a form in ONNX, in terms of calls that have one.

They are replaced only while a network is traced for an export, so that the
model itself computes what it always did.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from taskptq.engine.plain_forms import PlainForms, gathered_psa_mask

__all__ = ['exportable_calls', 'sampled_deform_conv2d']


class StableSorts(TorchFunctionMode):
    """Sort by TopK, which ONNX defines as stable.

    The exporter has no form for ``stable=True``; TopK with ties takes the
    lower index first, which is the same order.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Replace stable sorts; pass on all other calls."""
        options = dict(kwargs or {})
        if func in (Tensor.argsort, torch.argsort) and options.get('stable'):
            return _top_k(args[0], args[1:], options)[1]
        if func in (Tensor.sort, torch.sort) and options.get('stable'):
            return _top_k(args[0], args[1:], options)
        return func(*args, **options)


def _top_k(
    values: Tensor, rest: tuple[Any, ...], options: Mapping[str, Any]
) -> tuple[Tensor, Tensor]:
    dim = options.get('dim', rest[0] if rest else -1)
    falling = options.get('descending', rest[1] if len(rest) > 1 else False)
    # TopK is defined for fewer integer types than sort.
    keys = values if values.is_floating_point() else values.float()
    found = torch.topk(keys, values.shape[dim], dim=dim, largest=bool(falling))
    return found[0].to(values.dtype), found[1]


def sampled_deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = (1, 1),
    padding: Any = (0, 0),
    dilation: Any = (1, 1),
    mask: Tensor | None = None,
) -> Tensor:
    """Convolve at displaced places: sample all taps, then convolve 1x1.

    Arguments and result are those of ``torchvision.ops.deform_conv2d``
    (Zhu et al., Deformable ConvNets v2, eq. 1).

    Args:
        input: (B, C, H, W).
        offset: (B, 2 * G * K, H', W'), dy and dx of each of K taps in each
            of G groups of channels.
        weight: (O, C / groups, kernel height, kernel width).
        bias: (O,).
        stride: Of the places of the kernel.
        padding: Zeros around the input.
        dilation: Distance of the taps.
        mask: (B, G * K, H', W'), factor of each tap; or None.
    """
    batch, channels, height, width = input.shape
    taps = weight.shape[2] * weight.shape[3]
    groups = offset.shape[1] // (2 * taps)
    rows, columns = offset.shape[-2:]
    base = _places(weight, (rows, columns), stride, padding, dilation)
    places = offset.unflatten(1, (groups, taps, 2)) + base.to(offset)
    # B x G x K x 2 x H' x W' -> y and x from -1 to 1 of GridSample
    limit = offset.new_tensor([max(height - 1, 1), max(width - 1, 1)])
    scaled = 2 * places / limit.view(2, 1, 1) - 1
    grid = scaled.flip(3).permute(0, 1, 2, 4, 5, 3)
    sampled = functional.grid_sample(
        input.reshape(batch * groups, channels // groups, height, width),
        grid.reshape(batch * groups, taps * rows, columns, 2),
        align_corners=True,
    ).reshape(batch, groups, channels // groups, taps, rows, columns)
    if mask is not None:
        factor = mask.reshape(batch, groups, 1, taps, rows, columns)
        sampled = sampled * factor
    return functional.conv2d(
        sampled.reshape(batch, channels * taps, rows, columns),
        weight.flatten(1)[..., None, None],
        bias,
        groups=channels // weight.shape[1],
    )


def _places(
    weight: Tensor,
    size: tuple[int, int],
    stride: Any,
    padding: Any,
    dilation: Any,
) -> Tensor:
    """Return y and x of each tap at each place, (K, 2, H', W'), pixels."""
    axes = [
        torch.arange(size[i])[None] * _of(stride, i)
        - _of(padding, i)
        + torch.arange(weight.shape[2 + i])[:, None] * _of(dilation, i)
        for i in (0, 1)
    ]
    kernel = weight.shape[2:]
    y = axes[0][:, None, :, None].expand(*kernel, *size)
    x = axes[1][None, :, None, :].expand(*kernel, *size)
    return torch.stack([y, x], dim=2).flatten(0, 1)


def _of(value: Any, index: int) -> int:
    return int(value[index] if isinstance(value, (tuple, list)) else value)


class SizedPools(TorchFunctionMode):
    """Pool maps to other sizes by operators that need not know theirs.

    The exporter loses the sizes of some maps, such as Swin's, and writes a
    pooling to fixed bins only from a size that it knows.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Answer adaptive pooling; pass on all others."""
        pools = {
            functional.adaptive_avg_pool2d: pooled_to,
            functional.adaptive_max_pool2d: maximum_to,
        }
        if func in pools:
            x, size = _pooling(*args, **(kwargs or {}))
            if size == (1, 1):
                return func(x, size)
            if size is not None:
                return pools[func](x, size)
        return func(*args, **(kwargs or {}))


def _pooling(
    input: Tensor, output_size: Any, return_indices: bool = False
) -> tuple[Tensor, tuple[int, int] | None]:
    """Return input and size of a pooling; no size if it is not a map's."""
    pair = isinstance(output_size, (tuple, list))
    size = tuple(output_size) if pair else (output_size,) * 2
    if return_indices or any(side is None for side in size):
        return input, None
    # Sizes of other maps are tensors while torch traces.
    height, width = (int(side) for side in size)
    return input, (height, width)


def maximum_to(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Compute ``adaptive_max_pool2d`` by standard operators.

    Args:
        x: (N, C, H, W).
        size: Height and width of the result.
    """
    sides = tuple(int(n) for n in x.shape[-2:])
    if all(n % m == 0 for n, m in zip(sides, size, strict=True)):
        window = [n // m for n, m in zip(sides, size, strict=True)]
        return functional.max_pool2d(x, window)
    for axis, length, bins in zip((-2, -1), sides, size, strict=True):
        places = _windows(length, bins).to(x.device)
        taken = x.index_select(axis, places.flatten())
        x = taken.unflatten(axis, places.shape).amax(axis)
    return x


def _windows(length: int, bins: int) -> Tensor:
    """Return the places of each window of adaptive pooling, (bins, most).

    Shorter windows repeat their last place, which leaves maxima as they are.
    """
    edges = [
        (i * length // bins, -(-(i + 1) * length // bins)) for i in range(bins)
    ]
    most = max(end - start for start, end in edges)
    return torch.tensor(
        [
            [min(start + i, end - 1) for i in range(most)]
            for start, end in edges
        ]
    )


def pooled_to(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Compute ``adaptive_avg_pool2d`` from sizes that are Python numbers.

    Args:
        x: (N, C, H, W).
        size: Height and width of the result.
    """
    from taskptq.export.onnx.symbolics import window_means

    sides = tuple(int(n) for n in x.shape[-2:])
    if all(n % m == 0 for n, m in zip(sides, size, strict=True)):
        window = [n // m for n, m in zip(sides, size, strict=True)]
        return functional.avg_pool2d(x, window)
    rows, columns = (
        window_means(n, m).to(x) for n, m in zip(sides, size, strict=True)
    )
    return rows @ x @ columns.T


def mmcv_deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    deform_groups: int = 1,
    bias: bool = False,
    im2col_step: int = 32,
) -> Tensor:
    """Compute mmcv's ``deform_conv2d``, whose arguments these are.

    Numbers of groups are those of the shapes, and it has no bias.
    """
    # The exporter must know the shape of a kernel.
    weight = weight.reshape([int(n) for n in weight.shape])
    return sampled_deform_conv2d(
        input,
        offset,
        weight,
        stride=stride,
        padding=padding,
        dilation=dilation,
    )


# Module that defines a function -> what takes its place, there and wherever
# it was imported.
REPLACED: Mapping[str, Mapping[str, Callable[..., Tensor]]] = {
    'torchvision.ops.deform_conv': {'deform_conv2d': sampled_deform_conv2d},
    'mmcv.ops.deform_conv': {'deform_conv2d': mmcv_deform_conv2d},
    'mmcv.ops.psa_mask': {'psa_mask': gathered_psa_mask},
}


def holders(function: Any) -> list[tuple[Any, str]]:
    """Return the modules that have a function, and the names they know it by.

    Args:
        function: Function of a module.
    """
    return [
        (module, name)
        for module in list(sys.modules.values())
        for name, value in list(getattr(module, '__dict__', {}).items())
        if value is function
    ]


@contextmanager
def exportable_calls() -> Iterator[None]:
    """Replace calls without a form in ONNX; call it around a trace."""
    with ExitStack() as stack:
        for name, functions in REPLACED.items():
            if name not in sys.modules:
                continue
            for key, function in functions.items():
                for held in holders(getattr(sys.modules[name], key)):
                    patch = mock.patch.object(*held, function)
                    stack.enter_context(patch)
        stack.enter_context(PlainForms())
        stack.enter_context(StableSorts())
        stack.enter_context(SizedPools())
        yield
