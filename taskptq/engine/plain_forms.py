"""Functions of PyTorch and of hosts in operators that ONNX has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

__all__ = ['PlainForms', 'gathered_psa_mask', 'running_maxima']

# mmcv's number of it.
DISTRIBUTE = 1


class PlainForms(TorchFunctionMode):
    """Compute running maxima and diagonal matrices by other operators."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Replace the calls that ONNX has no form for; pass on all others."""
        options = dict(kwargs or {})
        found = func(*args, **options)
        if func in (torch.cummax, Tensor.cummax):
            dim = options.get('dim', args[1] if len(args) > 1 else None)
            # The exporter drops the places, unless someone reads them.
            return running_maxima(args[0], dim), found[1]
        if (
            func in (torch.diag, Tensor.diag)
            and args[0].ndim == 1
            and args[1:] in ((), (0,))
            and not options
        ):
            return diagonal(args[0], int(found.shape[0]))
        return found


def running_maxima(x: Tensor, dim: int) -> Tensor:
    """Return the values of ``torch.cummax`` by log2(n) maxima of pairs.

    After step k, each value is the maximum of the last 2^k.

    Args:
        x: Any shape.
        dim: Axis.
    """
    length, step = int(x.shape[dim]), 1
    while step < length:
        last = x.narrow(dim, step, length - step)
        before = x.narrow(dim, 0, length - step)
        first = x.narrow(dim, 0, step)
        x = torch.cat([first, torch.maximum(last, before)], dim)
        step *= 2
    return x


def diagonal(values: Tensor, size: int) -> Tensor:
    """Return the matrix (size, size) with these values on its diagonal."""
    places = torch.eye(size, dtype=torch.bool, device=values.device)
    # A product with 0 would make infinite values NaN.
    return torch.where(places, values[:, None], values.new_zeros(()))


def gathered_psa_mask(
    input: Tensor, psa_type: int, mask_size: tuple[int, int]
) -> Tensor:
    """Compute mmcv's ``psa_mask`` by a gather.

    Each place has a mask over its neighborhood, which becomes one over the
    whole map (Zhao et al., PSANet, ECCV 2018, section 3.3): of what a place
    collects, or, transposed, of what it distributes.

    Args:
        input: (N, height x width of the mask, H, W).
        psa_type: 0 for what is collected, 1 for what is distributed.
        mask_size: Odd height and width of the mask.

    Returns:
        (N, H x W, H, W).
    """
    batch = input.shape[0]
    height, width = (int(n) for n in input.shape[-2:])
    places = _neighbors(height, width, mask_size)
    # One more channel is what lies outside of the mask.
    padded = functional.pad(input.flatten(2), (0, 0, 0, 1))
    index = places.to(input.device).expand(batch, -1, -1)
    found = padded.gather(1, index)
    if psa_type == DISTRIBUTE:
        found = found.transpose(1, 2)
    return found.reshape(batch, height * width, height, width)


def _neighbors(height: int, width: int, mask_size: tuple[int, int]) -> Tensor:
    """Return the channel of a mask that is about another place.

    Returns:
        (1, H x W, H x W): of each other place, for each place; the number of
        channels where it is too far.
    """
    rows, columns = torch.arange(height), torch.arange(width)
    y = rows[:, None] - rows[None] + (mask_size[0] - 1) // 2
    x = columns[:, None] - columns[None] + (mask_size[1] - 1) // 2
    # other row, other column, row, column
    y, x = y[:, None, :, None], x[None, :, None, :]
    inside = (y >= 0) & (y < mask_size[0]) & (x >= 0) & (x < mask_size[1])
    channel = torch.where(
        inside, y * mask_size[1] + x, mask_size[0] * mask_size[1]
    )
    return channel.reshape(1, height * width, height * width)
