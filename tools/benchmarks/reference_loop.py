"""A plain reconstruction loop, for comparison only.

For each minibatch it runs the model from the image up to the unit twice: float
for the unit's target and quantized for its input. Every quantizer is written
as single tensor expressions, and each step rounds from the weight again. It
learns the same parameters by the same loss as ``taskptq.reconstruction``,
apart from a fixed weight of the rounding penalty, which costs the same.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.calibration.calibrate import calibration_mode
from taskptq.core import (
    AffineQuantizer,
    LSQQuantizer,
    dropping,
    float_only,
    quantizing,
)
from taskptq.core.functional import per_channel
from taskptq.core.switches import is_weight_quantizer, quantizers
from taskptq.engine.pipeline import run_batch
from taskptq.modules.base import quant_modules
from taskptq.reconstruction.capture.nesting import flatten, is_float, unflatten
from taskptq.reconstruction.config import ReconstructionConfig


def plain_drop(x_hat: Tensor, x: Tensor, *, drop_prob: float) -> Tensor:
    """Keep the float value at random (QDrop, Wei et al., ICLR 2022, Eq. 7).

    Args:
        x_hat: Quantized values.
        x: Float values, same shape.
        drop_prob: Probability of the float value.
    """
    return torch.where(torch.rand_like(x) < drop_prob, x, x_hat)


class _Plain:
    """Fake quantization by single expressions, straight-through gradient."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x``, quantized if enabled."""
        if not self.enabled or self.frozen or not self.calibrated:
            return x
        x_hat = self.fake_quantize(x)
        if self.drop_prob > 0:
            return plain_drop(x_hat, x, drop_prob=self.drop_prob)
        return x_hat

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Return ``x`` on the grid, same shape."""
        axis = self.spec.ch_axis
        scale = per_channel(self.scale, ndim=x.dim(), ch_axis=axis)
        zero_point = per_channel(self.zero_point, ndim=x.dim(), ch_axis=axis)
        if scale.requires_grad:
            # LSQ, Esser et al., ICLR 2020, section 2.2
            factor = (x.numel() * max(self.quant_max, 1)) ** -0.5
            scale = (scale - scale * factor).detach() + scale * factor
        steps = x / scale
        steps = (steps.round() - steps).detach() + steps
        codes = steps + zero_point
        codes = torch.clamp(codes, self.quant_min, self.quant_max)
        codes = codes - zero_point
        return codes * scale


class PlainAffine(_Plain, AffineQuantizer):
    """AffineQuantizer without fused kernels."""


class PlainLSQ(_Plain, LSQQuantizer):
    """LSQQuantizer without fused kernels."""


class PlainRounding(nn.Module):
    """AdaRound (Nagel et al., ICML 2020, Eqs. 22, 23), without caching.

    Args:
        quantizer: The weight's calibrated quantizer.
        weight: The float weight, any shape.
    """

    def __init__(self, quantizer: AffineQuantizer, weight: Tensor) -> None:
        super().__init__()
        self.spec = quantizer.spec
        self.quant_min = quantizer.quant_min
        self.quant_max = quantizer.quant_max
        self.scale = quantizer.scale.detach()
        self.zero_point = quantizer.zero_point
        self.weight = weight.detach()
        steps = self.weight / self._spread(self.scale)
        rest = (steps - steps.floor() + 0.1) / 1.2
        self.alpha = nn.Parameter(torch.log(rest / (1 - rest)))

    def _spread(self, values: Tensor) -> Tensor:
        return per_channel(
            values, ndim=self.weight.dim(), ch_axis=self.spec.ch_axis
        )

    def share_up(self) -> Tensor:
        """Return the share of a step by which each weight rises, in [0, 1]."""
        return torch.clamp(torch.sigmoid(self.alpha) * 1.2 - 0.1, 0, 1)

    def forward(self) -> Tensor:
        """Return the softly rounded weight."""
        scale, zero_point = (
            self._spread(self.scale),
            self._spread(self.zero_point),
        )
        codes = torch.floor(self.weight / scale)
        codes = codes + self.share_up()
        codes = codes + zero_point
        codes = torch.clamp(codes, self.quant_min, self.quant_max)
        codes = codes - zero_point
        return codes * scale


def plain_copy(model: nn.Module) -> nn.Module:
    """Copy a calibrated model with plain quantizers.

    Raises:
        TypeError: If it has a quantizer that is not affine.
    """
    model = copy.deepcopy(model)
    made: dict[int, nn.Module] = {}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if id(child) in made:
                setattr(parent, name, made[id(child)])
            elif any(child is q for _, q in quantizers(child)):
                made[id(child)] = _plain_quantizer(child)
                setattr(parent, name, made[id(child)])
    return model


def _plain_quantizer(quantizer: nn.Module) -> nn.Module:
    kinds = {AffineQuantizer: PlainAffine, LSQQuantizer: PlainLSQ}
    kind = kinds.get(type(quantizer))
    if kind is None:
        raise TypeError(
            f'the reference loop has no plain {type(quantizer).__name__}: '
            'choose a recipe with AffineQuantizer or LSQQuantizer'
        )
    plain = kind(quantizer.spec)
    plain.load_state_dict(quantizer.state_dict())
    return plain


class _Done(Exception):
    """All calls of the unit are done: skip the rest of the model."""


class ReferenceLoop:
    """The plain loop on one unit.

    Args:
        model: Calibrated model; copied.
        name: Qualified name of the unit.
        num_calls: Number of its calls in a forward pass.
        batches: Collated minibatches, held in memory.
        config: Settings.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        num_calls: int,
        batches: Sequence[Any],
        config: ReconstructionConfig,
    ) -> None:
        self.model = plain_copy(model).requires_grad_(False)
        self.unit = self.model.get_submodule(name)
        self.num_calls = num_calls
        self.batches = batches
        self.config = config
        self.roundings: list[PlainRounding] = []
        for _, module in quant_modules(self.unit):
            self._attach(module)
        scales = [
            parameter
            for quantizer_name, quantizer in quantizers(self.unit)
            if config.learn_scales and not is_weight_quantizer(quantizer_name)
            for parameter in quantizer.learnable()
        ]
        for scale in scales:
            scale.requires_grad_(True)
        alphas = [rounding.alpha for rounding in self.roundings]
        self.optimizer = torch.optim.Adam(
            [
                {'params': alphas, 'lr': config.weight_lr},
                *(
                    {'params': [s], 'lr': config.scale_lr * float(s.detach())}
                    for s in scales
                ),
            ]
        )

    def _attach(self, module: Any) -> None:
        for parameter, _ in module.active_slots():
            quantizer = module.weight_quantizer_of(parameter)
            if quantizer is not None and quantizer.calibrated:
                rounding = PlainRounding(quantizer, getattr(module, parameter))
                self.roundings.append(rounding)
                module._roundings[parameter] = rounding

    def step(self) -> tuple[float, float]:
        """Do one step.

        Returns:
            Seconds for fetching inputs and targets, and for the rest.
        """
        start = time.perf_counter()
        batch = self.batches[int(torch.randint(len(self.batches), ()))]
        with float_only(self.model):
            inputs_float, targets = self.fetch(batch)
        with quantizing(self.model):
            inputs, _ = self.fetch(batch)
        fetched = time.perf_counter()
        with (
            quantizing(self.unit),
            dropping(self.unit, drop_prob=self.config.drop_prob),
        ):
            loss = self._loss(inputs, inputs_float, targets)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
        return fetched - start, time.perf_counter() - fetched

    def fetch(self, batch: Any) -> tuple[list[Any], list[Tensor]]:
        """Run the model from the image and return the unit's calls."""
        inputs: list[Any] = []
        outputs: list[Tensor] = []

        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            # Copied, since a later layer may work in place.
            leaves, skeleton = flatten((args, kwargs))
            inputs.append(([leaf.clone() for leaf in leaves], skeleton))

        def after(module: nn.Module, args: Any, output: Any) -> None:
            outputs.extend(leaf.clone() for leaf in flatten(output)[0])
            if len(inputs) == self.num_calls:
                raise _Done

        handles = [
            self.unit.register_forward_pre_hook(before, with_kwargs=True),
            self.unit.register_forward_hook(after),
        ]
        try:
            with calibration_mode(self.model), suppress(_Done):
                run_batch(self.model, batch)
        finally:
            for handle in handles:
                handle.remove()
        return inputs, outputs

    def _loss(
        self, inputs: list[Any], inputs_float: list[Any], targets: list[Tensor]
    ) -> Tensor:
        outputs: list[Tensor] = []
        for (leaves, skeleton), (float_leaves, _) in zip(
            inputs, inputs_float, strict=True
        ):
            mixed = [
                plain_drop(leaf, other, drop_prob=self.config.drop_prob)
                if is_float(leaf)
                else leaf
                for leaf, other in zip(leaves, float_leaves, strict=True)
            ]
            args, kwargs = unflatten(mixed, skeleton)
            outputs.extend(flatten(self.unit(*args, **kwargs))[0])
        loss = torch.zeros(())
        for output, target in zip(outputs, targets, strict=True):
            error = ((output - target) ** 2).mean()
            loss = loss + error / (target**2).mean()
        for rounding in self.roundings:
            far = (2 * rounding.share_up() - 1).abs()
            loss = loss + 1e-3 * (1 - far**self.config.beta_start).mean()
        return loss
