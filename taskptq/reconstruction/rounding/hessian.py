"""Second moments of layer inputs for closed-form rounding."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Elements of one work tensor of unfolded inputs (64 MiB in float32).
MAX_ELEMENTS = 1 << 24


class HessianAccumulator:
    """Sum ``X X^T`` over a layer's inputs X, as columns of a matmul.

    The output error of a row w of weights is ``(w_hat - w) H (w_hat - w)^T``
    up to a factor, with ``H = 2 / n X X^T`` (GPTQ, Frantar et al., ICLR 2023,
    Eq. 1). Inputs are unfolded in chunks, so memory stays bounded.

    Args:
        layer: nn.Conv2d, nn.ConvTranspose2d or nn.Linear (counterparts
            included), or None for a matrix applied to the last dimension
            (projections of an attention).
        dtype: Dtype of the sums, float64 or float32.
        max_elements: Bound on the working tensor, in elements.
        max_positions: Bound on the output positions of a convolution that
            count per image, on a regular grid; None counts all.

    Raises:
        NotImplementedError: If the layer has another type.
    """

    def __init__(
        self,
        layer: nn.Module | None = None,
        *,
        dtype: torch.dtype = torch.float64,
        max_elements: int = MAX_ELEMENTS,
        max_positions: int | None = None,
    ) -> None:
        known = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
        if layer is not None and not isinstance(layer, known):
            raise NotImplementedError(
                f'closed-form rounding supports Conv2d, ConvTranspose2d and '
                f'Linear, not {type(layer).__name__}: use rounding="adaround" '
                'or "nearest" for it'
            )
        self.layer = layer
        self.dtype = dtype
        self.max_elements = max_elements
        self.max_positions = max_positions
        self.count = 0
        self.total: Tensor | None = None

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Add one batch of the layer's inputs.

        Args:
            x: (B, C_in, H, W) or (C_in, H, W) for convolutions, else
                (..., C_in).
        """
        for columns in self.columns(x.detach().float()):
            moment = (columns @ columns.transpose(1, 2)).to(self.dtype)
            self.count += columns.shape[2]
            if self.total is None:
                self.total = moment
            else:
                self.total += moment

    def hessian(self) -> Tensor:
        """Return ``2 / n X X^T``, (groups, K, K).

        Raises:
            RuntimeError: If nothing was added.
        """
        if self.total is None:
            raise RuntimeError(
                'no input was added because the layer never ran on the '
                'calibration set: round its weights to nearest instead'
            )
        return self.total * (2.0 / self.count)

    def thin(self, positions: Tensor) -> Tensor:
        """Return values of output positions in the order of the columns.

        Args:
            positions: (B, H', W') of a convolution, else any shape.
        """
        if isinstance(self.layer, nn.Conv2d | nn.ConvTranspose2d):
            step = self._step(positions.shape[-2] * positions.shape[-1])
            positions = positions[..., ::step, ::step]
        return positions.reshape(-1)

    def _step(self, positions: int) -> int:
        if self.max_positions is None:
            return 1
        return _thinning(positions, most=self.max_positions)

    def columns(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the inputs as (groups, K, n) pieces of bounded size."""
        layer = self.layer
        if isinstance(layer, nn.ConvTranspose2d):
            yield from self._transposed_conv_columns(layer, x)
        elif isinstance(layer, nn.Conv2d):
            yield from self._conv_columns(layer, x)
        else:
            rows = x.reshape(-1, x.shape[-1])
            step = max(1, self.max_elements // rows.shape[1])
            for piece in rows.split(step):
                yield piece.t()[None]

    def _conv_columns(self, layer: nn.Conv2d, x: Tensor) -> Iterator[Tensor]:
        x = x[None] if x.dim() == 3 else x
        # Covers numbers, 'same' and 'valid'.
        padding = layer._reversed_padding_repeated_twice
        mode = layer.padding_mode
        x = F.pad(x, padding, mode='constant' if mode == 'zeros' else mode)
        yield from self._unfold(layer, x, stride=layer.stride)

    def _transposed_conv_columns(
        self, layer: nn.ConvTranspose2d, x: Tensor
    ) -> Iterator[Tensor]:
        """Unfold a transposed convolution as a convolution.

        It convolves the input, spread by its stride, with the kernel rotated
        by 180 degrees; the columns are flipped back to the weight's order.
        """
        x = x[None] if x.dim() == 3 else x
        (height, width), (s_h, s_w) = x.shape[2:], layer.stride
        spread = x.new_zeros(
            *x.shape[:2], (height - 1) * s_h + 1, (width - 1) * s_w + 1
        )
        spread[..., ::s_h, ::s_w] = x
        padding = []
        for axis in (1, 0):
            reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
            before = reach - int(layer.padding[axis])
            padding += [before, before + layer.output_padding[axis]]
        kernel = layer.kernel_size[0] * layer.kernel_size[1]
        spread = F.pad(spread, padding)
        for columns in self._unfold(layer, spread, stride=(1, 1)):
            taps = columns.unflatten(1, (-1, kernel)).flip(2)
            yield taps.flatten(1, 2)

    def _unfold(
        self,
        layer: nn.Conv2d | nn.ConvTranspose2d,
        x: Tensor,
        *,
        stride: tuple[int, ...],
    ) -> Iterator[Tensor]:
        """Yield (groups, K, n) columns of a padded input, slab by slab."""
        k_h, k_w = layer.kernel_size
        d_h, d_w = layer.dilation
        reach = d_h * (k_h - 1) + 1
        out_height = (x.shape[2] - reach) // stride[0] + 1
        out_width = (x.shape[3] - d_w * (k_w - 1) - 1) // stride[1] + 1
        step = self._step(out_height * out_width)
        if step > 1:
            stride = (stride[0] * step, stride[1] * step)
            out_height = (out_height - 1) // step + 1
            out_width = (out_width - 1) // step + 1
        per_row = x.shape[1] * k_h * k_w * out_width
        rows = min(out_height, max(1, self.max_elements // per_row))
        images = max(1, self.max_elements // (per_row * rows))
        for part in x.split(images):
            for first in range(0, out_height, rows):
                last = min(first + rows, out_height) - 1
                top, bottom = first * stride[0], last * stride[0] + reach
                columns = F.unfold(
                    part[:, :, top:bottom],
                    kernel_size=(k_h, k_w),
                    dilation=(d_h, d_w),
                    stride=(stride[0], stride[1]),
                )
                # B x (groups K) x n -> groups x K x (B n)
                columns = columns.unflatten(1, (layer.groups, -1))
                yield columns.permute(1, 2, 0, 3).flatten(2)


def _thinning(positions: int, *, most: int) -> int:
    """Return the step along both axes that leaves about ``most`` positions.

    >>> _thinning(208 * 208, most=1024)
    7
    """
    return max(1, math.ceil(math.sqrt(positions / most)))
