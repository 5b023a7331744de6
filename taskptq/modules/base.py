"""Base of all quantized counterparts: conversion, weights, freezing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from taskptq.core import (
    FloatQuantizer,
    FreeWeight,
    LearnedRounding,
    Quantizer,
    QuantizerConfig,
)
from taskptq.core.base_quantizer import CodedQuantizer


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """Quantizer recipes of one module; None leaves a tensor float.

    Args:
        weight: Weights of convs and linears.
        activation: Inputs of convs and linears.
        query: Query operands of attention matmuls.
        key: Key operands of attention matmuls.
        value: Value operands of attention matmuls.
        softmax: Softmax outputs.
        operand: Both operands of products that no counterpart owns.
    """

    weight: QuantizerConfig | None = None
    activation: QuantizerConfig | None = None
    query: QuantizerConfig | None = None
    key: QuantizerConfig | None = None
    value: QuantizerConfig | None = None
    softmax: QuantizerConfig | None = None
    operand: QuantizerConfig | None = None


def build_quantizer(
    config: QuantizerConfig | None,
    *,
    ch_axis: int | None = None,
    num_heads: int | None = None,
    num_channels: int | None = None,
) -> Quantizer | None:
    """Build a quantizer, or return None without a recipe.

    Args:
        config: Recipe.
        ch_axis: Output-channel axis of a weight.
        num_heads: Heads of an attention operand.
        num_channels: Channels of the input of a depthwise convolution.
    """
    if config is None:
        return None
    return config.build(
        ch_axis=ch_axis, num_heads=num_heads, num_channels=num_channels
    )


class QuantModule(nn.Module):
    """Mixin of all counterparts.

    A counterpart subclasses (QuantModule, FloatClass), so the host's
    ``isinstance`` checks still hold. ``from_float`` takes over the float
    module's parameters, children and attributes without copying, then calls
    ``add_quantizers``.

    >>> from taskptq.modules import QuantLinear
    >>> linear = nn.Linear(4, 2)
    >>> quant = QuantLinear.from_float(
    ...     linear, scheme=Scheme(weight=QuantizerConfig()))
    >>> quant.weight is linear.weight
    True
    >>> quant.calibrate_weights()
    >>> quant.codes('weight').dtype
    torch.int32

    Attributes:
        weight_slots: Parameter name -> name of its weight quantizer.
        weight_axes: Parameter name -> output-channel axis (0 if absent).
        bias_slots: Parameter name -> name of the bias added to its product.
        closed_form: Whether a call multiplies its first argument by the
            weights, as solving for a rounding supposes.
    """

    weight_slots: ClassVar[dict[str, str]] = {}
    weight_axes: ClassVar[dict[str, int]] = {}
    bias_slots: ClassVar[dict[str, str]] = {'weight': 'bias'}
    closed_form: ClassVar[bool] = True
    _roundings: dict[str, LearnedRounding]
    _rounded: dict[str, Tensor]
    _biases: dict[str, Tensor]

    @classmethod
    def from_float(cls, module: nn.Module, *, scheme: Scheme) -> QuantModule:
        """Make the counterpart of a float module.

        Args:
            module: Float module; shares its parameters with the result.
            scheme: Recipes of the quantizers.
        """
        quant = cls.__new__(cls)
        nn.Module.__init__(quant)
        quant.__dict__.update(
            {
                name: value.copy() if isinstance(value, dict) else value
                for name, value in module.__dict__.items()
            }
        )
        quant._roundings = {}
        quant._rounded = {}
        quant._biases = {}
        quant.add_quantizers(scheme)
        return quant

    def _apply(self, fn: Any, recurse: bool = True) -> QuantModule:
        # Finished roundings and corrected biases must follow the module to
        # its device, but aren't buffers: checkpoints must not hold them.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._rounded = {k: fn(v) for k, v in self._rounded.items()}
        self._biases = {k: fn(v) for k, v in self._biases.items()}
        return self

    def add_quantizers(self, scheme: Scheme) -> None:
        """Register the quantizers; subclasses add theirs."""
        for parameter, quantizer in self.active_slots():
            axis = self.weight_axis(parameter)
            setattr(
                self,
                quantizer,
                build_quantizer(scheme.weight, ch_axis=axis),
            )

    def weight_axis(self, parameter: str) -> int:
        """Return the output-channel axis of a weight as stored."""
        return self.weight_axes.get(parameter, 0)

    def active_slots(self) -> list[tuple[str, str]]:
        """Return (parameter, quantizer name) of each weight that exists."""
        return [
            (parameter, quantizer)
            for parameter, quantizer in self.weight_slots.items()
            if getattr(self, parameter, None) is not None
        ]

    def weight_quantizer_of(self, parameter: str) -> CodedQuantizer | None:
        """Return the quantizer of one weight, None if it stays float.

        Raises:
            TypeError: If its grid has no integer codes.
        """
        quantizer = getattr(self, self.weight_slots[parameter])
        if isinstance(quantizer, FloatQuantizer):
            return None
        if quantizer is not None and not isinstance(quantizer, CodedQuantizer):
            raise TypeError(
                f'weights need a quantizer with integer codes, such as '
                f'AffineQuantizer, got {type(quantizer).__name__}: change '
                'qconfig.weight.type'
            )
        return quantizer

    def weight_kind(self, parameter: str) -> str:
        """Return the kind of levels of a weight, '' for equal steps."""
        quantizer = self.weight_quantizer_of(parameter)
        return '' if quantizer is None else quantizer.level_kind

    def weight_values_of(
        self, parameter: str
    ) -> CodedQuantizer | FloatQuantizer | None:
        """Return what says which values a weight may take, once it is set.

        None if any will do: the weight has no quantizer, or one without a
        range.
        """
        quantizer = getattr(self, self.weight_slots[parameter])
        if isinstance(quantizer, FloatQuantizer):
            return quantizer
        coded = self.weight_quantizer_of(parameter)
        return coded if coded is not None and coded.calibrated else None

    def quantized_weight(self, parameter: str = 'weight') -> Tensor:
        """Return a weight as forward must use it now.

        Float if its quantizer is off; else the rounding in training, the
        finished rounding, or round-to-nearest.
        """
        weight: Tensor = getattr(self, parameter)
        quantizer = getattr(self, self.weight_slots[parameter])
        if quantizer is None or not quantizer.enabled:
            return weight
        if parameter in self._roundings:
            rounded = quantizer.masked(self._roundings[parameter]())
            weight = rounded.to(weight.dtype)
        elif parameter in self._rounded:
            weight = self._rounded[parameter]
        else:
            weight = quantizer(weight)
        return weight

    def bias_of(self, parameter: str = 'weight') -> Tensor | None:
        """Return the float bias added to a weight's product, or None."""
        name = self.bias_slots.get(parameter)
        bias: Tensor | None = None if name is None else getattr(self, name)
        return bias

    def quantized_bias(self, parameter: str = 'weight') -> Tensor | None:
        """Return a bias as forward must use it now.

        The corrected one if there is one and the weight is quantized.
        """
        corrected = self._biases.get(parameter)
        if corrected is not None:
            quantizer = getattr(self, self.weight_slots[parameter])
            if quantizer is not None and quantizer.enabled:
                return corrected
        return self.bias_of(parameter)

    @torch.no_grad()
    def set_bias(self, parameter: str, bias: Tensor) -> None:
        """Set the bias to use with a quantized weight; the float one stays.

        Args:
            parameter: Name of the weight.
            bias: (C_out,).

        Raises:
            ValueError: If the layer has no bias of this shape there.
        """
        own = self.bias_of(parameter)
        if own is None or own.shape != bias.shape:
            raise ValueError(
                f'a bias of shape {tuple(bias.shape)} does not fit '
                f'{parameter!r} of {type(self).__name__}'
            )
        self._biases[parameter] = bias.to(own)

    def start_bias(self, parameter: str) -> nn.Parameter | None:
        """Return the bias to train with a quantized weight, if it has one.

        ``finish_rounding`` keeps what was learned.
        """
        own = self._biases.get(parameter, self.bias_of(parameter))
        if own is None:
            return None
        bias = nn.Parameter(own.detach().clone())
        self._biases[parameter] = bias
        return bias

    def forget_biases(self) -> None:
        """Go back to the float biases."""
        self._biases.clear()

    @property
    def corrected_biases(self) -> dict[str, Tensor]:
        """Corrected biases, by the name of their weight."""
        return dict(self._biases)

    @torch.no_grad()
    def calibrate_weights(self) -> None:
        """Set the weight ranges; needs no data."""
        for parameter, _ in self.active_slots():
            quantizer = self.weight_quantizer_of(parameter)
            if quantizer is None or quantizer.observer is None:
                continue
            weight = quantizer.masked(getattr(self, parameter))
            quantizer.calibrate_weight(weight)

    def start_rounding(
        self, *, latent: bool = False
    ) -> dict[str, LearnedRounding]:
        """Attach learned rounding to each weight; return it by parameter.

        Args:
            latent: Let codes move freely, and scales with them.
        """
        for parameter, _ in self.active_slots():
            quantizer = self.weight_values_of(parameter)
            if quantizer is None:
                continue
            weight = quantizer.masked(getattr(self, parameter))
            if isinstance(quantizer, FloatQuantizer):
                free = FreeWeight(weight, ch_axis=self.weight_axis(parameter))
                self._roundings[parameter] = free
            else:
                self._roundings[parameter] = quantizer.start_rounding(
                    weight, latent=latent
                )
        return dict(self._roundings)

    @property
    def roundings(self) -> dict[str, LearnedRounding]:
        """Unfinished learned roundings, by parameter."""
        return dict(self._roundings)

    def attach_roundings(
        self, roundings: Mapping[str, LearnedRounding]
    ) -> None:
        """Reattach unfinished roundings, as they are."""
        self._roundings.update(roundings)

    def drop_roundings(self) -> None:
        """Forget unfinished roundings and what they learned."""
        self._roundings.clear()

    @torch.no_grad()
    def finish_rounding(self) -> None:
        """Fix what was learned; the float weights and biases are kept too."""
        for parameter, rounding in self._roundings.items():
            quantizer = self.weight_values_of(parameter)
            assert quantizer is not None
            if isinstance(quantizer, CodedQuantizer):
                rounding.settle(quantizer)
            self.set_codes(parameter, rounding.codes())
        self._biases = {k: v.detach() for k, v in self._biases.items()}
        self._roundings.clear()

    @torch.no_grad()
    def set_codes(self, parameter: str, codes: Tensor) -> None:
        """Fix the integer codes of one weight, shaped like it.

        A float weight has values for codes. Masked elements become 0.
        """
        quantizer = self.weight_values_of(parameter)
        assert quantizer is not None
        weight: Tensor = getattr(self, parameter)
        values = quantizer.masked(quantizer.dequantize(codes))
        self._rounded[parameter] = values.to(weight.dtype)

    @property
    def rounded_parameters(self) -> tuple[str, ...]:
        """Names of the weights whose codes are fixed."""
        return tuple(self._rounded)

    @torch.no_grad()
    def codes(self, parameter: str = 'weight') -> Tensor:
        """Return the integer codes of one weight, int32.

        Those of a float weight are its values.
        """
        quantizer = self.weight_values_of(parameter)
        assert quantizer is not None
        value = self._rounded.get(parameter, getattr(self, parameter))
        return quantizer.quantize(value)

    @torch.no_grad()
    def freeze(self) -> None:
        """Replace the weights by their quantized values, permanently.

        Raises:
            RuntimeError: If a learned rounding is still in training.
        """
        if self._roundings:
            raise RuntimeError(
                f'{type(self).__name__} is still training its rounding: call '
                'finish_rounding() before freeze()'
            )
        for parameter, _ in self.active_slots():
            quantizer = self.weight_values_of(parameter)
            if quantizer is None:
                continue
            weight = getattr(self, parameter)
            weight.data = quantizer.dequantize(self.codes(parameter)).to(
                weight.dtype
            )
            quantizer.frozen = True
            quantizer.mask = None  # zeros stay zeros
        for parameter, corrected in self._biases.items():
            getattr(self, self.bias_slots[parameter]).data = corrected
        self._rounded.clear()
        self._biases.clear()


def quant_modules(model: nn.Module) -> list[tuple[str, QuantModule]]:
    """Return (qualified name, counterpart) pairs in definition order."""
    return [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, QuantModule)
    ]
