"""Trace quantizers as placeholder operators of an ONNX graph.

The exporter loses the names of weights and cannot carry every integer type.
So each quantizer leaves one operator of our own domain with its name, and
:mod:`.lowering` puts the standard operators in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.core import AffineQuantizer, Quantizer
from taskptq.core.base_quantizer import CodedQuantizer
from taskptq.core.switches import is_weight_quantizer, quantizers
from taskptq.export.onnx.errors import OnnxExportError
from taskptq.modules.base import QuantModule, quant_modules
from taskptq.modules.memory import is_exporting

DOMAIN = 'taskptq'
ACTIVATION = 'Activation'
WEIGHT = 'Weight'
# Of a table of values in a file.
MOST_CODES = 1 << 10


@dataclass(frozen=True, kw_only=True)
class Grid:
    """An integer grid and, for a weight, the codes on it.

    Args:
        name: Qualified name of the quantizer, or of the weight.
        scale: (C,) or (1,), float32.
        zero_point: Like ``scale``, int32.
        quant_min: Lowest code.
        quant_max: Highest code.
        num_bits: Bits of one code.
        ch_axis: Axis of the channels, None for one grid per tensor.
        codes: Codes of a weight, int32; None for an activation.
    """

    name: str
    scale: Tensor
    zero_point: Tensor
    quant_min: int
    quant_max: int
    num_bits: int
    ch_axis: int | None
    codes: Tensor | None = None


@dataclass(kw_only=True)
class Emitted:
    """What a trace left in the graph.

    Args:
        grids: Grid of each placeholder, by its name.
        decomposed: Quantizers without a uniform grid, computed in floats.
    """

    grids: dict[str, Grid] = field(default_factory=dict)
    decomposed: list[str] = field(default_factory=list)


class _Placeholder(torch.autograd.Function):
    """Return fixed values; in a graph, one operator with a name."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, x_hat: Callable[[], Tensor], kind: str, name: str
    ) -> Tensor:
        # The graph gets one operator, not the arithmetic behind it.
        with untraced():
            return x_hat().clone()

    @staticmethod
    def symbolic(g: Any, x: Any, x_hat: Any, kind: str, name: str) -> Any:
        out = g.op(f'{DOMAIN}::{kind}', x, grid_s=name)
        sizes = x.type().sizes()
        if kind == WEIGHT or not sizes:
            return out.setType(x.type())
        # Else code that computes with the number of images, or of windows,
        # finds that of the example.
        return out.setType(x.type().with_sizes([None, *sizes[1:]]))


@contextmanager
def untraced() -> Iterator[None]:
    """Compute without leaving operators in a trace."""
    state = torch._C._get_tracing_state()
    set_state = torch._C._set_tracing_state  # type: ignore[attr-defined]
    set_state(None)
    try:
        yield
    finally:
        set_state(state)


@contextmanager
def exporting(model: nn.Module) -> Iterator[Emitted]:
    """Make every active quantizer leave a placeholder while tracing.

    Values stay what they are, so the model computes the same inside.

    Args:
        model: Frozen model; its quantizers are enabled.

    Raises:
        OnnxExportError: If a quantizer has no form in ONNX.
    """
    emitted = Emitted()
    changed: list[tuple[nn.Module, str]] = []
    try:
        for name, quantizer in quantizers(model):
            if is_weight_quantizer(name) or not quantizer.calibrated:
                continue
            quantizer.__dict__['fake_quantize'] = _of_activation(
                quantizer, name, emitted
            )
            changed.append((quantizer, 'fake_quantize'))
        for name, module in quant_modules(model):
            module.__dict__['quantized_weight'] = _of_weight(
                module, name, emitted
            )
            changed.append((module, 'quantized_weight'))
        yield emitted
    finally:
        for owner, attribute in changed:
            del owner.__dict__[attribute]


def grids_of_weight(
    quantizer: CodedQuantizer, codes: Tensor, *, name: str
) -> list[Grid]:
    """Return a weight's codes and their grids, as integers times a scale.

    Several grids add up to the weight: a runtime computes it once, and then
    in floats.

    Raises:
        OnnxExportError: If they are no such integers.
    """
    planes = quantizer.integer_planes(codes)
    if not planes:
        raise OnnxExportError(
            f'{name} has levels that are no integers times scales '
            f'({quantizer.extra_repr()}): quantize it with '
            "levels='mid-rise', 'ternary' or 'binary'"
        )
    single = len(planes) == 1
    return [
        Grid(
            name=name if single else f'{name}.plane{number}',
            scale=form.scale.float().cpu().reshape(-1).clone(),
            zero_point=form.zero_point.cpu().reshape(-1).clone(),
            quant_min=form.quant_min,
            quant_max=form.quant_min + 2**form.num_bits - 1,
            num_bits=form.num_bits,
            ch_axis=quantizer.spec.ch_axis,
            codes=form.codes.cpu(),
        )
        for number, form in enumerate(planes)
    ]


def grid_of(quantizer: AffineQuantizer, *, name: str) -> Grid:
    """Return a copy of a quantizer's grid."""
    return Grid(
        name=name,
        scale=quantizer.scale.detach().float().cpu().reshape(-1).clone(),
        zero_point=quantizer.zero_point.detach().cpu().reshape(-1).clone(),
        quant_min=quantizer.quant_min,
        quant_max=quantizer.quant_max,
        num_bits=quantizer.spec.num_bits,
        ch_axis=quantizer.spec.ch_axis,
    )


def _of_activation(
    quantizer: Quantizer, name: str, emitted: Emitted
) -> Callable[[Tensor], Tensor]:
    """Return what stands in for ``fake_quantize`` of one quantizer."""
    compute = quantizer.fake_quantize
    if not isinstance(quantizer, AffineQuantizer):
        return _in_floats(quantizer, name, emitted)

    def fake_quantize(x: Tensor) -> Tensor:
        emitted.grids.setdefault(name, grid_of(quantizer, name=name))
        values = partial(compute, x.detach())
        return _mark(x, values, kind=ACTIVATION, name=name)

    return fake_quantize


def _in_floats(
    quantizer: Quantizer, name: str, emitted: Emitted
) -> Callable[[Tensor], Tensor]:
    """Return the arithmetic of a grid that no standard operator has."""
    kind = type(quantizer)
    if (
        kind.__dict__.get('quantize') is None
        or kind.__dict__.get('dequantize') is None
    ):
        raise OnnxExportError(
            f'{name} is a {kind.__name__}, which has no form in ONNX: '
            'quantize with an affine grid there, or leave the point float'
        )

    values = value_table(quantizer)

    def fake_quantize(x: Tensor) -> Tensor:
        if name not in emitted.decomposed:
            emitted.decomposed.append(name)
        codes = quantizer.quantize(x)  # type: ignore[operator]
        if values is not None:
            return values[codes.long()]
        return quantizer.dequantize(codes)  # type: ignore[operator,no-any-return]

    return fake_quantize


@torch.no_grad()
def value_table(quantizer: Quantizer) -> Tensor | None:
    """Return the value of each code, which a runtime looks up.

    None if codes have other values in each head, or their number
    (``num_codes``, from 0 on) is not known.
    """
    count = getattr(quantizer, 'num_codes', None)
    if count is None or count > MOST_CODES:
        return None
    codes = torch.arange(count, dtype=torch.int32)
    try:
        values: Tensor = quantizer.dequantize(codes)  # type: ignore[operator]
    except ValueError:
        return None
    return values.detach() if values.shape == codes.shape else None


def _of_weight(
    module: QuantModule, name: str, emitted: Emitted
) -> Callable[..., Tensor]:
    """Return what stands in for ``quantized_weight`` of one layer."""
    compute = module.quantized_weight
    planes: dict[str, list[Grid]] = {}

    def quantized_weight(parameter: str = 'weight') -> Tensor:
        weight: Tensor = getattr(module, parameter)
        quantizer = module.weight_quantizer_of(parameter)
        if quantizer is None or not quantizer.calibrated:
            return weight
        if not quantizer.enabled:
            return weight
        full = f'{name}.{parameter}' if name else parameter
        if full not in planes:
            codes = module.codes(parameter)
            planes[full] = grids_of_weight(quantizer, codes, name=full)
            emitted.grids |= {grid.name: grid for grid in planes[full]}
        if len(planes[full]) == 1:
            values = partial(compute, parameter)
            return _mark(weight, values, kind=WEIGHT, name=full)
        parts = [
            _mark(
                weight,
                partial(_values, grid, weight),
                kind=WEIGHT,
                name=grid.name,
            )
            for grid in planes[full]
        ]
        return sum(parts[1:], start=parts[0])

    return quantized_weight


def _values(grid: Grid, like: Tensor) -> Tensor:
    """Return the part of a weight that lies on a grid."""
    assert grid.codes is not None
    scale = grid.scale
    if grid.ch_axis is not None:
        shape = [1] * like.dim()
        shape[grid.ch_axis] = -1
        scale = scale.reshape(shape)
    return (grid.codes * scale).to(like)


def _mark(
    x: Tensor, x_hat: Callable[[], Tensor], *, kind: str, name: str
) -> Tensor:
    out: Tensor
    if is_exporting():
        out = torch.onnx.ops.symbolic(
            f'{DOMAIN}::{kind}',
            [x],
            attrs={'grid': name},
            dtype=x.dtype,
            shape=x.shape,
            version=1,
        )
        return out
    out = _Placeholder.apply(x, x_hat, kind, name)  # type: ignore[no-untyped-call]
    return out
