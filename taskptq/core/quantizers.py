"""Quantizer modules: a grid, its state and the switches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from taskptq.core.functional import (
    dequantize,
    fake_quantize,
    lsq_drop_quantize,
    lsq_fake_quantize,
    quantize,
    random_drop,
    range_to_affine,
)
from taskptq.core.observers import Observer
from taskptq.core.settings import Flag
from taskptq.core.spec import QuantSpec


class Quantizer(nn.Module):
    """Base class: observe, quantize or pass through.

    Subclasses implement ``fake_quantize``, and with integer codes also
    ``quantize`` and ``dequantize``. Set ``enabled`` and ``observing``
    through the contexts of :mod:`taskptq.core.switches`.

    Args:
        spec: Grid.
        observer: Statistics for ``calibrate``, which then drops it.

    Attributes:
        points: Attention operands that it supports, e.g. ``('softmax',)``;
            None for all.
        takes_head_grids: Whether an observer may set one grid per attention
            head by itself.
        rescales: Whether it changes vector lengths before rounding.
        transform_only: Transform without rounding; set by
            ``transforming()``.
        mask: Which elements of a weight remain, bool and shaped like it;
            the others are 0. None keeps all. Files hold no masks: zeros are
            codes like others.
        prices: What each code of a weight costs, (levels,), in squared
            steps, for roundings that weigh it against errors. None: nothing.
        max_bits: Most bits that a weight's codes may take once they are
            entropy-coded; None for any.
    """

    points: ClassVar[tuple[str, ...] | None] = None
    takes_head_grids: ClassVar[bool] = False
    rescales: ClassVar[bool] = False
    grid: Tensor
    mask: Tensor | None
    prices: Tensor | None

    def __init__(
        self, spec: QuantSpec, *, observer: Observer | None = None
    ) -> None:
        super().__init__()
        self.spec = spec
        self.observer = observer
        self.enabled = False
        self.observing = False
        self.transform_only = False
        self.frozen = False
        self.drop_prob = 0.0
        self.max_bits: float | None = None
        self.quant_min, self.quant_max = spec.bounds(signed=bool(spec.signed))
        self.register_buffer('grid', torch.empty(0, dtype=torch.int32))
        self.register_buffer('mask', None, persistent=False)
        self.register_buffer('prices', None, persistent=False)

    @property
    def calibrated(self) -> bool:
        """Whether a range is set."""
        return self.grid.numel() > 0

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``, quantized if enabled; any shape.

        ``frozen`` marks a weight that already lies on its grid.
        """
        if self.observing and self.observer is not None:
            self.observer.observe(x)
        if not self.enabled or self.frozen or not self.calibrated:
            return x
        return self.quantize_and_drop(x)

    def quantize_and_drop(self, x: Tensor) -> Tensor:
        """Return ``x`` on the grid, with random elements float (QDrop)."""
        x_hat = self.fake_quantize(x)
        if self.drop_prob > 0:
            return random_drop(x_hat, x, drop_prob=self.drop_prob)
        return x_hat

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Return ``x`` on the grid, same shape and dtype."""
        raise NotImplementedError

    def masked(self, x: Tensor) -> Tensor:
        """Return a weight with the elements outside of the mask at 0."""
        if self.mask is None:
            return x
        return torch.where(self.mask, x, torch.zeros_like(x))

    def calibrate(self) -> bool:
        """Set the range from the observer; return False if it saw nothing."""
        if self.observer is None or not self.observer.observed:
            return False
        self.set_bounds(signed=self.observer.signed)
        self.set_range(*self.observer.compute_range())
        self.observer = None
        return True

    def set_bounds(self, *, signed: bool) -> None:
        """Choose the signed or unsigned grid."""
        self.quant_min, self.quant_max = self.spec.bounds(signed=signed)
        self.grid = torch.tensor(
            [self.quant_min, self.quant_max],
            dtype=torch.int32,
            device=self.grid.device,
        )

    def set_range(self, min_val: Tensor, max_val: Tensor) -> None:
        """Set the grid's parameters from a range of (C,) or (1,) ends."""
        raise NotImplementedError

    def learnable(self) -> list[nn.Parameter]:
        """Return the parameters that reconstruction may train."""
        return []

    def magnitude_of(self, parameter: nn.Parameter) -> float:
        """Return the magnitude that scales a parameter's learning rate."""
        return float(parameter.detach().abs().mean())

    def settle(self) -> None:
        """Make learned values a valid grid again, after training."""

    def report(self) -> dict[str, Any] | None:
        """Return calibration's findings as plain types; None if none."""
        return None

    def state_faults(self, fields: Mapping[str, Tensor]) -> Iterator[str]:
        """Yield each reason why a file's state doesn't fit this quantizer.

        Args:
            fields: Its parameters and buffers in the file, by name.
        """
        yield from ()

    def extra_repr(self) -> str:
        """Show the grid in ``print(model)``."""
        kind = 'symmetric' if self.spec.symmetric else 'asymmetric'
        axis = self.spec.ch_axis
        where = 'per tensor' if axis is None else f'per channel {axis}'
        state = 'calibrated' if self.calibrated else 'uncalibrated'
        return f'{self.spec.num_bits} bit, {kind}, {where}, {state}'

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any
    ) -> None:
        # Shapes are known only from the state: one scale, or one per channel.
        for name, value in list(self._buffers.items()):
            stored = state_dict.get(prefix + name)
            if value is not None and stored is not None:
                self._buffers[name] = torch.empty_like(
                    stored, dtype=value.dtype, device=value.device
                )
        for name, parameter in self._parameters.items():
            stored = state_dict.get(prefix + name)
            if parameter is not None and stored is not None:
                parameter.data = torch.empty_like(
                    stored, dtype=parameter.dtype, device=parameter.device
                )
        stored = state_dict.get(prefix + 'grid')
        if stored is not None and stored.numel():
            self.observer = None  # the state is calibrated already
        super()._load_from_state_dict(state_dict, prefix, *args)
        if self.calibrated:
            self.quant_min, self.quant_max = self.grid.tolist()


class AffineQuantizer(Quantizer):
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
        return float((count * max(self.quant_max, 1)) ** -0.5)

    @torch.no_grad()
    def settle(self) -> None:
        """Make learned values a valid grid again, after training."""
        self.scale.data.clamp_(min=1e-8)
        if self.offset is not None:
            codes = self.offset.round().clamp(self.quant_min, self.quant_max)
            self.offset.data = codes
            self.zero_point = codes.to(torch.int32)
