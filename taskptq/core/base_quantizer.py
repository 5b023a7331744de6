"""Base classes of quantizers: a grid, its state and the switches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from taskptq.core.code_grid import CodeGrid
from taskptq.core.drop import random_drop
from taskptq.core.learned_rounding import LearnedRounding
from taskptq.core.observers import Observer
from taskptq.core.setting_error import refuse
from taskptq.core.spec import MIN_BITS, QuantSpec


class Quantizer(nn.Module):
    """Base class: observe, quantize or pass through.

    Subclasses implement ``fake_quantize``, and with integer codes also
    ``quantize`` and ``dequantize``. Set ``enabled`` and ``observing``
    through the contexts of :mod:`taskptq.core.switches`.

    Args:
        spec: Grid.
        observer: Statistics for ``calibrate``, which then drops it.

    Raises:
        SettingError: If ``spec`` has fewer bits than the class allows.

    Attributes:
        points: Attention operands that it supports, e.g. ``('softmax',)``;
            None for all.
        takes_head_grids: Whether an observer may set one grid per attention
            head by itself.
        rescales: Whether it changes vector lengths before rounding.
        least_bits: Fewest bits of a code.
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
    least_bits: ClassVar[int] = MIN_BITS
    grid: Tensor
    mask: Tensor | None
    prices: Tensor | None

    def __init__(
        self, spec: QuantSpec, *, observer: Observer | None = None
    ) -> None:
        super().__init__()
        if spec.num_bits < self.least_bits:
            raise refuse(
                'num_bits',
                spec.num_bits,
                f'give {type(self).__name__} at least {self.least_bits} '
                'bits; a LevelQuantizer has fewer',
            )
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

    def calibrate_weight(self, weight: Tensor) -> None:
        """Set the grid of a weight, unless it has one already."""
        if self.observer is not None:
            self.observer.observe(weight)
            self.calibrate()

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

    def legal_grids(self) -> tuple[tuple[int, int], ...]:
        """Return each (lowest, highest) code that its grid may have."""
        signed = self.spec.bounds(signed=True)
        return signed, self.spec.bounds(signed=False)

    @classmethod
    def for_spec(
        cls, spec: QuantSpec, settings: Mapping[str, Any]
    ) -> tuple[type[Quantizer], Mapping[str, Any]]:
        """Return the class that gives a point these bits, and its arguments.

        A grid of few levels hands over to another one where a layer needs
        more bits, as first and last layers do.

        Args:
            spec: Grid asked for.
            settings: Further arguments given with this class.
        """
        del spec
        return cls, settings

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


class CodedQuantizer(Quantizer):
    """Base class of grids whose values have integer codes: those of weights.

    Subclasses implement ``quantize``, ``dequantize`` and what rounding needs
    of a grid.
    """

    @property
    def num_levels(self) -> int:
        """Number of codes."""
        return self.spec.num_levels

    @property
    def level_kind(self) -> str:
        """Name of the kind of levels that it has; '' for equal steps."""
        return ''

    @property
    def has_zero(self) -> bool:
        """Whether 0 is one of its values, as sparse weights need."""
        return True

    def quantize(self, x: Tensor) -> Tensor:
        """Return integer codes, int32, shaped like ``x``."""
        raise NotImplementedError

    def dequantize(self, codes: Tensor) -> Tensor:
        """Return the float values of codes."""
        raise NotImplementedError

    def start_rounding(
        self, weight: Tensor, *, latent: bool = False
    ) -> LearnedRounding:
        """Return a rounding that learns codes of this grid.

        Args:
            weight: The float weight.
            latent: Let codes move freely, and the grid with them.
        """
        raise NotImplementedError

    def after_step(self, weight: Tensor) -> Tensor | None:
        """Return a weight to go on with after an optimizer step, or None.

        Args:
            weight: The float weight after the step.
        """
        del weight
        return None

    def code_grid(self, shape: tuple[int, int]) -> CodeGrid:
        """Return a copy of the grid for rows of weights.

        Args:
            shape: Rows of the weight, (G, R); one grid per tensor has (1, 1).
        """
        raise NotImplementedError

    def set_code_grid(self, grid: CodeGrid) -> None:
        """Take over a grid that :meth:`code_grid` returned and was changed."""
        raise NotImplementedError

    def steps(self) -> Tensor:
        """Return the distance of neighbouring values, (C,) or (1,)."""
        raise NotImplementedError

    def integer_form(self, codes: Tensor) -> IntegerForm | None:
        """Return the grid and codes as integers times a scale, or None.

        Args:
            codes: Integer codes of a weight.
        """
        raise NotImplementedError

    def integer_planes(self, codes: Tensor) -> list[IntegerForm]:
        """Return the weight as a sum of such forms; empty if it is none.

        Args:
            codes: Integer codes of a weight.
        """
        whole = self.integer_form(codes)
        return [] if whole is None else [whole]


@dataclass(frozen=True, kw_only=True)
class IntegerForm:
    """A weight as ``(codes - zero_point) scale``, which runtimes compute.

    Args:
        codes: Integers, shaped like the weight.
        scale: (C,) or (1,).
        zero_point: Like ``scale``.
        quant_min: Lowest code that fits ``num_bits``.
        num_bits: Bits of one code.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    quant_min: int
    num_bits: int
