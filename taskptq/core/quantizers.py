"""Quantizers with uniform grids."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from taskptq.core.base_quantizer import (
    CodedQuantizer,
    IntegerForm,
    Quantizer,
)
from taskptq.core.code_grid import CodeGrid, UniformCodes
from taskptq.core.drop import lsq_drop_quantize
from taskptq.core.functional import (
    dequantize,
    fake_quantize,
    lsq_fake_quantize,
    quantize,
    range_to_affine,
)
from taskptq.core.latent_weight import LatentWeight
from taskptq.core.learned_rounding import LearnedRounding
from taskptq.core.observers import Observer
from taskptq.core.settings import Flag
from taskptq.core.spec import QuantSpec

__all__ = ['AffineQuantizer', 'CodedQuantizer', 'LSQQuantizer', 'Quantizer']


class AffineQuantizer(CodedQuantizer):
    """Uniform grid with a fixed scale and zero point.

    >>> quantizer = AffineQuantizer(QuantSpec(num_bits=4))
    >>> quantizer.set_bounds(signed=False)
    >>> quantizer.set_range(torch.tensor([-1.0]), torch.tensor([6.5]))
    >>> quantizer.quantize(torch.tensor([-1.0, 0.3, 9.0]))
    tensor([ 0,  3, 15], dtype=torch.int32)
    >>> quantizer.fake_quantize(torch.tensor([-1.0, 0.3, 9.0]))
    tensor([-1.0000,  0.5000,  6.5000])
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(
        self, spec: QuantSpec, *, observer: Observer | None = None
    ) -> None:
        super().__init__(spec, observer=observer)
        self._register_scale()
        self.register_buffer('zero_point', torch.empty(0, dtype=torch.int32))

    def _register_scale(self) -> None:
        self.register_buffer('scale', torch.empty(0))

    def set_range(self, min_val: Tensor, max_val: Tensor) -> None:
        """Set scale and zero point from a range of (C,) or (1,) ends."""
        scale, zero_point = range_to_affine(
            min_val,
            max_val,
            symmetric=self.spec.symmetric,
            quant_min=self.quant_min,
            quant_max=self.quant_max,
        )
        self._set_scale(scale.reshape(-1))
        self.zero_point = zero_point.reshape(-1)

    def _set_scale(self, scale: Tensor) -> None:
        self.scale = scale

    def set_scale(self, scale: Tensor) -> None:
        """Set the scale alone, shaped like the one before."""
        self._set_scale(scale.reshape(self.scale.shape))

    def set_zero_point(self, zero_point: Tensor) -> None:
        """Set the zero point alone, codes shaped like the one before."""
        codes = zero_point.reshape(self.zero_point.shape)
        self.zero_point = codes.clamp(self.quant_min, self.quant_max)

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Return ``x`` on the grid, with a straight-through gradient."""
        return fake_quantize(self.masked(x), **self.parameters_of_grid())

    def quantize(self, x: Tensor) -> Tensor:
        """Return integer codes, int32; masked elements have that of 0."""
        return quantize(self.masked(x), **self.parameters_of_grid())

    def dequantize(self, codes: Tensor) -> Tensor:
        """Return the float values of codes."""
        return dequantize(
            codes,
            scale=self.scale,
            zero_point=self.zero_point,
            ch_axis=self.spec.ch_axis,
        )

    def parameters_of_grid(self) -> dict[str, Any]:
        """Return the grid as arguments for :mod:`.functional`."""
        return {
            'scale': self.scale,
            'zero_point': self.zero_point,
            'quant_min': self.quant_min,
            'quant_max': self.quant_max,
            'ch_axis': self.spec.ch_axis,
        }

    def start_rounding(
        self, weight: Tensor, *, latent: bool = False
    ) -> LearnedRounding:
        """Return a rounding that learns codes of this grid."""
        return (LatentWeight if latent else LearnedRounding)(self, weight)

    def code_grid(self, shape: tuple[int, int]) -> UniformCodes:
        """Return a copy of the grid for rows of weights."""
        rows = shape if self.scale.numel() > 1 else (1, 1)
        return UniformCodes(
            scale=self.scale.detach().reshape(rows).clone(),
            zero_point=self.zero_point.reshape(rows).clone(),
            bounds=(self.quant_min, self.quant_max),
            symmetric=self.spec.symmetric,
        )

    def set_code_grid(self, grid: CodeGrid) -> None:
        """Take over a grid that was changed."""
        assert isinstance(grid, UniformCodes)
        self.scale.data = grid.scale.reshape(-1).to(self.scale)
        self.zero_point = grid.zero_point.reshape(-1).to(self.zero_point)

    def steps(self) -> Tensor:
        """Return the scale."""
        return self.scale

    def integer_form(self, codes: Tensor) -> IntegerForm:
        """Return the codes as they are."""
        return IntegerForm(
            codes=codes,
            scale=self.scale.detach(),
            zero_point=self.zero_point,
            quant_min=self.quant_min,
            num_bits=self.spec.num_bits,
        )


class LSQQuantizer(AffineQuantizer):
    """Uniform grid whose scale (and offset) can be learned.

    LSQ, Esser et al., ICLR 2020; with ``learn_zero_point`` LSQ+, Bhalgat et
    al., CVPRW 2020. The scale trains only while its ``requires_grad`` is
    set; forward rounds the zero point to an integer.

    Args:
        spec: Grid.
        observer: Statistics for the initial range.
        learn_zero_point: Also learn the zero point.
    """

    def __init__(
        self,
        spec: QuantSpec,
        *,
        observer: Observer | None = None,
        learn_zero_point: bool = False,
    ) -> None:
        super().__init__(spec, observer=observer)
        self.offset: nn.Parameter | None = None
        if Flag().read(learn_zero_point, name='learn_zero_point'):
            self.offset = nn.Parameter(torch.empty(0), requires_grad=False)

    def _register_scale(self) -> None:
        self.scale = nn.Parameter(torch.empty(0), requires_grad=False)

    def _set_scale(self, scale: Tensor) -> None:
        self.scale.data = scale

    def set_range(self, min_val: Tensor, max_val: Tensor) -> None:
        """Set scale and zero point from a range of (C,) or (1,) ends."""
        super().set_range(min_val, max_val)
        if self.offset is not None:
            self.offset.data = self.zero_point.float()

    def set_zero_point(self, zero_point: Tensor) -> None:
        """Set the zero point alone, codes shaped like the one before."""
        super().set_zero_point(zero_point)
        if self.offset is not None:
            self.offset.data = self.zero_point.float()

    def learnable(self) -> list[nn.Parameter]:
        """Return the scale, and the offset if it is learned."""
        assert isinstance(self.scale, nn.Parameter)
        if not self.calibrated:
            return []
        return [self.scale, *([] if self.offset is None else [self.offset])]

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Return ``x`` on the grid, with gradients for what is learned."""
        if not self.scale.requires_grad:
            return super().fake_quantize(x)
        grid = self.parameters_of_grid()
        if self.offset is not None:
            grid['zero_point'] = self.offset
        return lsq_fake_quantize(x, **grid, grad_factor=self._factor(x))

    def quantize_and_drop(self, x: Tensor) -> Tensor:
        """Quantize and drop, fused where only a scale is learned."""
        if (
            not self.scale.requires_grad
            or self.offset is not None
            or self.spec.ch_axis is not None
            or x.dtype != torch.float32
        ):
            return super().quantize_and_drop(x)
        return lsq_drop_quantize(
            x,
            scale=self.scale,
            zero_point=int(self.zero_point),
            quant_min=self.quant_min,
            quant_max=self.quant_max,
            grad_factor=self._factor(x),
            drop_prob=self.drop_prob,
        )

    def _factor(self, x: Tensor) -> float:
        """Return LSQ's gradient factor for the scale (section 2.2)."""
        axis = self.spec.ch_axis
        count = x.numel() if axis is None else x.numel() // x.shape[axis]
        # Of no values, as those of an image without proposals, it is unused
        return float((max(count, 1) * max(self.quant_max, 1)) ** -0.5)

    @torch.no_grad()
    def settle(self) -> None:
        """Make learned values a valid grid again, after training."""
        self.scale.data.clamp_(min=1e-8)
        if self.offset is not None:
            codes = self.offset.round().clamp(self.quant_min, self.quant_max)
            self.offset.data = codes
            self.zero_point = codes.to(torch.int32)
