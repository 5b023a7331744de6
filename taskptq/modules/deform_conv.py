"""Counterparts of deformable convolutions: mmcv's v1 and v2, torchvision's.

A deformable convolution reads its input between pixels, at offsets that
another layer computes, and multiplies what it has read by its weights. The
second step is the matrix product that a runtime computes in integers, so its
two operands are quantized: the values read (times their mask, in v2) and the
weights. Offsets, interpolation and masks stay float.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from taskptq.modules.base import QuantModule, Scheme, build_quantizer


class QuantDeformConv2d(QuantModule):
    """Counterpart of deformable convolutions that are given their offsets.

    With every quantizer off the host's own operator runs. Used through
    :func:`taskptq.modules.dynamic_class.counterpart_class`.
    """

    weight_slots: ClassVar[dict[str, str]] = {'weight': 'weight_quantizer'}
    closed_form: ClassVar[bool] = False
    weight: Tensor
    groups: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def add_quantizers(self, scheme: Scheme) -> None:
        """Register the quantizers of the sampled values and the weights."""
        self.input_quantizer = build_quantizer(scheme.activation)
        super().add_quantizers(scheme)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Convolve; same arguments as the host's.

        Args:
            args: Input (B, C_in, H, W), offsets (B, 2 D K, H', W') for D
                groups of offsets and K taps, as y and x in turn, and of v2
                the masks (B, D K, H', W').
            kwargs: The same by name.

        Returns:
            (B, C_out, H', W').
        """
        if not self.active:
            # The operators of mmcv take nothing else.
            args = tuple(_contiguous(x) for x in args)
            kwargs = {name: _contiguous(x) for name, x in kwargs.items()}
            out: Tensor = super().forward(*args, **kwargs)
            return out
        # Hosts call the input x or input.
        names = ('offset', 'mask')
        first = [x for name, x in kwargs.items() if name not in names]
        named = {name: kwargs[name] for name in names if name in kwargs}
        return self.convolve(*args, *first, **named)

    @property
    def active(self) -> bool:
        """Whether an operand is quantized or observed now."""
        found: list[Any] = [self.input_quantizer, self.weight_quantizer]
        return any(
            quantizer is not None
            and (quantizer.enabled or quantizer.observing)
            for quantizer in found
        )

    def convolve(
        self, x: Tensor, offset: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """Sample, then multiply; shapes as in ``forward``."""
        geometry = {
            'kernel_size': _pair(self.kernel_size),
            'stride': _pair(self.stride),
            'padding': _pair(self.padding),
            'dilation': _pair(self.dilation),
        }
        if mask is not None:
            size = output_size(x, **geometry)
            offset, mask = as_laid_out(offset, size), as_laid_out(mask, size)
        values = sample(x, offset, mask, **geometry)
        if self.input_quantizer is not None:
            values = self.input_quantizer(values)
        weight = self.quantized_weight()
        out = multiply_sampled(values, weight, groups=self.groups)
        bias = self.quantized_bias()
        if bias is not None:
            out = out + bias[:, None, None]
        return out

    def bias_of(self, parameter: str = 'weight') -> Tensor | None:
        """Return the bias, which v1 has not."""
        bias: Tensor | None = getattr(self, 'bias', None)
        return bias


class QuantDeformConv2dPack(QuantDeformConv2d):
    """Counterpart of mmcv's v1 that computes its own offsets."""

    conv_offset: torch.nn.Module

    def convolve(
        self, x: Tensor, offset: Tensor | None = None, mask: Any = None
    ) -> Tensor:
        """Compute the offsets, then sample and multiply."""
        return super().convolve(x, self.conv_offset(x))


class QuantModulatedDeformConv2dPack(QuantDeformConv2dPack):
    """Counterpart of mmcv's v2 that computes its own offsets and masks."""

    def convolve(
        self, x: Tensor, offset: Tensor | None = None, mask: Any = None
    ) -> Tensor:
        """Compute offsets and masks, then sample and multiply."""
        first, second, mask = self.conv_offset(x).chunk(3, dim=1)
        offset = torch.cat((first, second), dim=1)
        return QuantDeformConv2d.convolve(self, x, offset, mask.sigmoid())


def sample(
    x: Tensor,
    offset: Tensor,
    mask: Tensor | None = None,
    *,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Read the values that a deformable convolution multiplies.

    Bilinear interpolation, zero outside (Dai et al., ICCV 2017, Eq. 2-4; with
    masks Zhu et al., CVPR 2019, Eq. 1).

    Args:
        x: (B, C, H, W).
        offset: (B, 2 D K, H', W') in pixels, for D groups of channels and
            the K taps of the kernel; y and x in turn.
        mask: (B, D K, H', W'), or None.
        kernel_size: Taps along y and x.
        stride: Pixels between outputs.
        padding: Pixels in front of the first tap.
        dilation: Pixels between taps.

    Returns:
        (B, C, K, H', W').
    """
    batch, _, height, width = x.shape
    taps = kernel_size[0] * kernel_size[1]
    rows, columns = offset.shape[-2:]
    groups = offset.shape[1] // (2 * taps)
    ends = [
        _positions(n, k, s, p, d, like=offset)
        for n, k, s, p, d in zip(
            (rows, columns),
            kernel_size,
            stride,
            padding,
            dilation,
            strict=True,
        )
    ]  # (k, n) each
    # (B D) x K x H' x W' x 2
    moved = offset.reshape(batch * groups, taps, 2, rows, columns)
    shape = (*kernel_size, rows, columns)
    y = ends[0][:, None, :, None].expand(shape).flatten(0, 1) + moved[:, :, 0]
    x_at = ends[1][None, :, None].expand(shape).flatten(0, 1) + moved[:, :, 1]
    # Pixel i of n is at (2 i + 1) / n - 1.
    grid = torch.stack(
        [(2 * x_at + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1
    )
    values = F.grid_sample(
        x.reshape(batch * groups, -1, height, width),
        grid.flatten(1, 2),
        mode='bilinear',
        padding_mode='zeros',
        align_corners=False,
    )
    values = values.unflatten(2, (taps, rows))
    if mask is not None:
        values = values * mask.reshape(batch * groups, 1, taps, rows, columns)
    found: Tensor = values.reshape(batch, -1, taps, rows, columns)
    return found


def multiply_sampled(values: Tensor, weight: Tensor, *, groups: int) -> Tensor:
    """Multiply what :func:`sample` has read by the weights.

    Args:
        values: (B, C_in, K, H', W').
        weight: (C_out, C_in / groups, kH, kW), with kH kW = K.
        groups: Groups of channels.

    Returns:
        (B, C_out, H', W').
    """
    # B x G x (C_in / G * K) x (H' W')
    columns = values.flatten(3).unflatten(1, (groups, -1)).flatten(2, 3)
    # G x (C_out / G) x (C_in / G * K)
    filters = weight.flatten(1).unflatten(0, (groups, -1))
    out = (filters @ columns).flatten(1, 2)
    found: Tensor = out.unflatten(2, values.shape[-2:])
    return found


def output_size(
    x: Tensor,
    *,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, int]:
    """Return the height and width of a convolution's output.

    Args:
        x: (B, C, H, W).
        kernel_size: Taps along y and x.
        stride: Pixels between outputs.
        padding: Pixels on each side.
        dilation: Pixels between taps.
    """
    height, width = (
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(
            x.shape[-2:], kernel_size, stride, padding, dilation, strict=True
        )
    )
    return height, width


def as_laid_out(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Return offsets or masks as mmcv's v2 reads them.

    It takes the size of the output from the input, and the numbers of an
    image in the order in which they lie in memory. DyHead hands over offsets
    of a finer level, so that this counts.

    >>> x = torch.arange(8.0).reshape(1, 2, 2, 2)
    >>> as_laid_out(x, (1, 2))
    tensor([[[[0., 1.]],
    <BLANKLINE>
             [[2., 3.]]]])

    Args:
        x: (B, C, H, W).
        size: Height and width of the output.

    Returns:
        (B, C, *size); ``x`` itself where its size is that.
    """
    if x.shape[-2:] == size or x[0, 0].numel() < size[0] * size[1]:
        return x
    flat = x.flatten(1)[:, : x.shape[1] * size[0] * size[1]]
    return flat.reshape(*x.shape[:2], *size)


def _positions(
    count: int,
    taps: int,
    stride: int,
    padding: int,
    dilation: int,
    *,
    like: Tensor,
) -> Tensor:
    """Return where the taps of an undeformed kernel lie, (taps, count)."""
    options: dict[str, Any] = {'device': like.device, 'dtype': like.dtype}
    outputs = torch.arange(count, **options) * stride - padding
    steps = torch.arange(taps, **options)[:, None] * dilation
    found: Tensor = steps + outputs
    return found


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else tuple(value)
