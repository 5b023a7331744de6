"""Closed-form rounding of one unit, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from taskptq.modules.base import QuantModule
from taskptq.modules.multihead_attention import QuantMultiheadAttention
from taskptq.prepare.blocks import Unit
from taskptq.reconstruction.capture.unit_data import UnitData
from taskptq.reconstruction.config import ReconstructionConfig
from taskptq.reconstruction.rounding.gptq import HessianAccumulator, gptq_layer
from taskptq.reconstruction.rounding.learned import UnitResult


def round_unit(
    unit: Unit, data: UnitData, config: ReconstructionConfig
) -> UnitResult:
    """Round each weight of a unit by GPTQ, in definition order.

    The unit runs on its cached inputs once per layer, so that every layer
    sees the outputs of the layers already rounded.

    Args:
        unit: Calibrated unit.
        data: Its inputs.
        config: Settings; only ``gptq_damping`` is read.
    """
    result = UnitResult(name=unit.name, steps=0)
    for name, layer in unit.layers():
        slots = [
            parameter
            for parameter, _ in layer.active_slots()
            if _is_ready(layer, parameter)
        ]
        if not slots:
            continue
        inputs = _LayerInputs(layer)
        with inputs.listening():
            data.compute('quant', keep=())
        for parameter in slots:
            hessian = inputs.hessian_of(parameter)
            if hessian is None:  # never called: stays rounded to nearest
                continue
            try:
                codes = gptq_layer(
                    layer, parameter, hessian, damping=config.gptq_damping
                )
            except ValueError as error:
                raise ValueError(f'{name}.{parameter}: {error}') from error
            layer.set_codes(parameter, codes)
    return result


def _is_ready(layer: QuantModule, parameter: str) -> bool:
    quantizer = layer.weight_quantizer_of(parameter)
    return quantizer is not None and quantizer.calibrated


class _LayerInputs:
    """Second moments of the inputs that a counterpart's weights multiply."""

    def __init__(self, layer: QuantModule) -> None:
        self.layer = layer
        matmul = None if isinstance(layer, QuantMultiheadAttention) else layer
        self._matmul = matmul
        self.moments: dict[str, HessianAccumulator] = {}
        self._shared: dict[str, str] = {}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Collect while the unit runs."""
        if isinstance(self.layer, QuantMultiheadAttention):
            hook = self._projections
        else:
            hook = self._single
        handle = self.layer.register_forward_pre_hook(hook, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()
        _reduce(self.moments)

    def hessian_of(
        self, parameter: str
    ) -> Tensor | list[tuple[slice, Tensor]] | None:
        """Return the Hessian for :func:`gptq_layer`, None without inputs."""
        if not self.moments:
            return None
        if 'weight' in self.moments:
            return self.moments['weight'].hessian()
        if parameter != 'in_proj_weight':
            return self.moments[parameter[0]].hessian()
        embed = getattr(self.layer, parameter).shape[0] // 3
        return [
            (slice(i * embed, (i + 1) * embed), self.moments[key].hessian())
            for i, key in enumerate('qkv')
        ]

    def _single(self, layer: nn.Module, args: Any, kwargs: Any) -> None:
        x = args[0] if args else kwargs['x']
        if not kwargs.get('input_quantized', False):
            x = _quantized(layer, 'input_quantizer', x)
        if x.numel():
            self._add('weight', x)

    def _projections(self, layer: nn.Module, args: Any, kwargs: Any) -> None:
        named = dict(zip(('query', 'key', 'value'), args, strict=False))
        named |= {
            k: kwargs[k] for k in ('query', 'key', 'value') if k in kwargs
        }
        points = ('input', 'key_input', 'value_input')
        seen: dict[int, Tensor] = {}
        for (name, x), point in zip(named.items(), points, strict=True):
            if id(x) not in seen:  # a shared tensor is quantized once
                seen[id(x)] = _quantized(layer, f'{point}_quantizer', x)
            self._add(name[0], seen[id(x)])

    def _add(self, key: str, x: Tensor) -> None:
        if key not in self.moments:
            self.moments[key] = HessianAccumulator(self._matmul)
        self.moments[key].add(x)


def _quantized(layer: nn.Module, name: str, x: Tensor) -> Tensor:
    quantizer = getattr(layer, name, None)
    return x if quantizer is None else quantizer(x)


def _reduce(moments: dict[str, HessianAccumulator]) -> None:
    """Sum Hessians over the ranks on which the layer ran."""
    if not (dist.is_available() and dist.is_initialized()):
        return
    own = {
        key: (moment.total, moment.count) for key, moment in moments.items()
    }
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, own)
    for key in sorted({key for part in parts for key in part}):
        given = [part[key] for part in parts if key in part]
        moment = moments.setdefault(key, HessianAccumulator())
        moment.total = torch.stack([total for total, _ in given]).sum(dim=0)
        moment.count = sum(count for _, count in given)
