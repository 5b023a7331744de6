"""The quantizer of grids of a few levels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

import taskptq.core.levels.grids  # noqa: F401 - every kind gets its name
from taskptq.core.base_quantizer import (
    CodedQuantizer,
    IntegerForm,
    Quantizer,
)
from taskptq.core.code_grid import CodeGrid
from taskptq.core.learned_rounding import LearnedRounding
from taskptq.core.levels.codes import LevelCodes
from taskptq.core.levels.estimators import ESTIMATORS, Estimator
from taskptq.core.levels.levels import (
    LEAST,
    LEVELS,
    Levels,
    as_rows,
    fit,
    from_rows,
    nearest_level,
)
from taskptq.core.levels.pulls import PULLS, Pull
from taskptq.core.levels.rounding import LatentLevels, LevelRounding
from taskptq.core.observers import HistogramObserver, Observer
from taskptq.core.quantizers import AffineQuantizer
from taskptq.core.settings import Choice, Table, refuse
from taskptq.core.spec import QuantSpec


class LevelQuantizer(CodedQuantizer):
    """Nearest of a few levels per channel, which are fitted and learnable.

    A code is the index of a level, from the lowest one. What the levels are
    made of is up to their kind: see :mod:`taskptq.core.levels.levels`.

    >>> quantizer = LevelQuantizer(QuantSpec(num_bits=2, ch_axis=0),
    ...                            levels='ternary')
    >>> weight = torch.tensor([[0.9, -0.05, 0.4, -0.7, 0.1, -0.35]])
    >>> quantizer.calibrate_weight(weight)
    >>> quantizer.levels()
    tensor([[-0.5875,  0.0000,  0.5875]])
    >>> quantizer.quantize(weight)
    tensor([[2, 1, 2, 0, 1, 0]], dtype=torch.int32)

    Args:
        spec: Bits (those of the kind) and channel axis; the rest is unused.
        observer: For activations: a histogram, which levels are fitted to.
            Weights are fitted themselves.
        levels: Name of the kind, e.g. 'ternary'.
        estimator: Share of the gradient that passes the rounding:
            'identity', 'clipped' or 'polynomial'.
        pull: What training adds to a weight's gradient: its name, or a dict
            with the name as ``type`` and further arguments.

    Raises:
        SettingError: If a name is unknown or the bits are not the kind's.
    """

    least_bits: ClassVar[int] = 1
    coefficients: nn.Parameter

    def __init__(
        self,
        spec: QuantSpec,
        *,
        observer: Observer | None = None,
        levels: str = 'ternary',
        estimator: str = 'clipped',
        pull: str | Mapping[str, Any] = 'none',
    ) -> None:
        super().__init__(spec, observer=observer)
        self.kind = kind_of(levels)
        if spec.num_bits != self.kind.num_bits:
            raise refuse(
                'num_bits',
                spec.num_bits,
                f'give {levels} levels {self.kind.num_bits} bits',
            )
        name = Choice(choices=tuple(ESTIMATORS)).read(
            estimator, name='estimator'
        )
        self.estimator: Estimator = ESTIMATORS[name]
        self.pull = _make_pull(pull)
        self.quant_min, self.quant_max = 0, self.kind.num_levels - 1
        self.coefficients = nn.Parameter(torch.empty(0), requires_grad=False)

    @property
    def num_levels(self) -> int:
        """Number of levels."""
        return self.kind.num_levels

    @property
    def level_kind(self) -> str:
        """Name of the kind of levels."""
        return self.kind.name

    @property
    def has_zero(self) -> bool:
        """Whether 0 is a level."""
        return self.kind.has_zero

    @classmethod
    def for_spec(
        cls, spec: QuantSpec, settings: Mapping[str, Any]
    ) -> tuple[type[Quantizer], Mapping[str, Any]]:
        """Hand over to a uniform grid where more bits are asked for."""
        kind = kind_of(settings.get('levels', 'ternary'))
        if spec.num_bits > kind.num_bits:
            return AffineQuantizer, {}
        return cls, settings

    def levels(self) -> Tensor:
        """Return the levels, (C, K), ascending, with a gradient."""
        return self.kind.ordered(self.coefficients)[0]

    def legal_grids(self) -> tuple[tuple[int, int], ...]:
        """Return the one range that codes have."""
        return ((0, self.num_levels - 1),)

    def set_bounds(self, *, signed: bool) -> None:
        """Mark the levels as set; their kind says whether they have signs."""
        del signed
        self.grid = torch.tensor(
            [0, self.num_levels - 1],
            dtype=torch.int32,
            device=self.coefficients.device,
        )

    def set_coefficients(self, coefficients: Tensor) -> None:
        """Set the levels by what their kind makes them of, (C, P)."""
        self.coefficients.data = coefficients.to(torch.float32)
        self.set_bounds(signed=True)

    def set_range(self, min_val: Tensor, max_val: Tensor) -> None:
        """Fit the levels to the ends of a range alone."""
        rows = torch.stack([min_val, max_val], dim=1)
        self.set_coefficients(fit(self.kind, rows))

    @torch.no_grad()
    def calibrate_weight(self, weight: Tensor) -> None:
        """Fit the levels to a weight; no data is needed.

        Raises:
            ValueError: If the weight is not finite.
        """
        if self.calibrated:
            return
        if not weight.isfinite().all():
            raise ValueError(
                f'weight of shape {tuple(weight.shape)} holds NaN or infinity'
            )
        rows = as_rows(weight, ch_axis=self.spec.ch_axis)
        self.set_coefficients(fit(self.kind, rows))
        self.observer = None

    def calibrate(self) -> bool:
        """Fit the levels to a histogram of activations.

        Raises:
            ValueError: If the observer has none.
        """
        if self.observer is None or not self.observer.observed:
            return False
        if not isinstance(self.observer, HistogramObserver):
            raise ValueError(
                f'{type(self.observer).__name__} has no histogram to fit '
                'levels to: give the MSEObserver'
            )
        centres, counts = self.observer.samples()
        found = fit(self.kind, centres[None], weights=counts[None])
        self.set_coefficients(found)
        self.observer = None
        return True

    def masked(self, x: Tensor) -> Tensor:
        """Return a weight with the elements outside of the mask at 0.

        Raises:
            ValueError: If it has a mask, but no level at 0.
        """
        if self.mask is not None and not self.has_zero:
            raise ValueError(
                f'{self.kind.name} levels have no zero for a sparse weight: '
                "give levels='ternary', or no sparsity"
            )
        return super().masked(x)

    def fake_quantize(self, x: Tensor) -> Tensor:
        """Return ``x`` on its levels, with the estimator's gradient."""
        x = self.masked(x)
        axis = self.spec.ch_axis
        levels = self.levels()
        rows = as_rows(x.to(levels.dtype), ch_axis=axis)
        out: Tensor = _ToLevels.apply(  # type: ignore[no-untyped-call]
            rows, levels, self.estimator, self.pull
        )
        return from_rows(out, like=x, ch_axis=axis).to(x.dtype)

    def quantize(self, x: Tensor) -> Tensor:
        """Return the indices of the nearest levels, int32."""
        axis = self.spec.ch_axis
        levels = self.levels().detach()
        x = self.masked(x)
        rows = as_rows(x.detach().to(levels.dtype), ch_axis=axis)
        codes = nearest_level(rows, levels).to(torch.int32)
        return from_rows(codes, like=x, ch_axis=axis).contiguous()

    def dequantize(self, codes: Tensor) -> Tensor:
        """Return the levels with these indices."""
        axis = self.spec.ch_axis
        rows = as_rows(codes, ch_axis=axis).long()
        values = self.levels().gather(1, rows)
        return from_rows(values, like=codes, ch_axis=axis).contiguous()

    def learnable(self) -> list[nn.Parameter]:
        """Return what the levels are made of."""
        return [self.coefficients] if self.calibrated else []

    @torch.no_grad()
    def settle(self) -> None:
        """Make learned levels valid again."""
        self.coefficients.data = self.kind.repaired(self.coefficients.data)

    def start_rounding(
        self, weight: Tensor, *, latent: bool = False
    ) -> LearnedRounding:
        """Return a rounding that learns codes, latent ones levels as well."""
        return (LatentLevels if latent else LevelRounding)(self, weight)

    @torch.no_grad()
    def after_step(self, weight: Tensor) -> Tensor | None:
        """Return what the pull makes of a weight after a step, or None."""
        if not self.pull.moves or not self.calibrated:
            return None
        axis = self.spec.ch_axis
        rows = as_rows(weight, ch_axis=axis)
        levels = self.levels()
        values = levels.gather(1, nearest_level(rows, levels))
        moved = self.pull.after_step(rows, values)
        if moved is None:
            return None
        return from_rows(moved, like=weight, ch_axis=axis)

    def code_grid(self, shape: tuple[int, int]) -> LevelCodes:
        """Return a copy of the levels for rows of weights."""
        found = self.coefficients.detach().clone()
        rows = shape if found.shape[0] > 1 else (1, 1)
        return LevelCodes(
            kind=self.kind, coefficients=found.reshape(*rows, -1)
        )

    def set_code_grid(self, grid: CodeGrid) -> None:
        """Take over levels that were changed."""
        assert isinstance(grid, LevelCodes)
        self.set_coefficients(grid.coefficients.flatten(0, 1))

    def steps(self) -> Tensor:
        """Return the mean distance of neighbouring levels."""
        levels = self.levels().detach()
        return (levels[:, -1] - levels[:, 0]) / (self.num_levels - 1)

    def integer_form(self, codes: Tensor) -> IntegerForm | None:
        """Return codes as integers around 0, of grids that have such."""
        found = self.kind.integers()
        if found is None:
            return None
        integers, unit = found
        table = torch.tensor(integers, dtype=torch.int32, device=codes.device)
        most = max(abs(one) for one in integers)
        bits = most.bit_length() + 1
        size = self.coefficients.detach()[:, 0] * unit
        return IntegerForm(
            codes=table[codes.long()],
            scale=size,
            zero_point=torch.zeros_like(size, dtype=torch.int32),
            quant_min=-(2 ** (bits - 1)),
            num_bits=bits,
        )

    def integer_planes(self, codes: Tensor) -> list[IntegerForm]:
        """Return codes as a sum of integers, each times a scale.

        One plane for each coefficient: ``sum_p basis[k, p] coefficient_p``.
        """
        whole = self.integer_form(codes)
        if whole is not None:
            return [whole]
        axis, found = self.spec.ch_axis, self.coefficients.detach()
        rows = as_rows(codes, ch_axis=axis).long()
        order = self.kind.ordered(found)[1]
        basis = self.kind.matrix(found)[order]  # C x K x P
        planes = []
        for number, size in enumerate(found.unbind(dim=1)):
            signs = torch.where(size < 0, -1.0, 1.0)[:, None]
            shares = (basis[..., number] * signs).gather(1, rows)
            integers = shares.round().to(torch.int32)
            if not torch.equal(integers.to(shares), shares):
                return []
            planes.append(
                IntegerForm(
                    codes=from_rows(integers, like=codes, ch_axis=axis),
                    scale=size.abs().clamp(min=LEAST),
                    zero_point=torch.zeros_like(size, dtype=torch.int32),
                    quant_min=-2,
                    num_bits=2,
                )
            )
        return planes

    def state_faults(self, fields: Mapping[str, Tensor]) -> Iterator[str]:
        """Yield each reason why a file's levels don't fit this quantizer."""
        found = fields.get('coefficients')
        if found is None or not found.numel():
            return
        columns = self.kind.num_coefficients
        if found.dim() != 2 or found.shape[1] != columns:
            yield (
                f'has coefficients of shape {list(found.shape)}, '
                f'{self.kind.name} levels have {columns} per channel'
            )
        elif self.spec.ch_axis is None and found.shape[0] != 1:
            yield f'has {found.shape[0]} sets of levels for one tensor'
        else:
            for fault in self.kind.faults(found.float()):
                yield f'has {fault}'

    def extra_repr(self) -> str:
        """Show the grid in ``print(model)``."""
        axis = self.spec.ch_axis
        where = 'per tensor' if axis is None else f'per channel {axis}'
        state = 'calibrated' if self.calibrated else 'uncalibrated'
        return f'{self.kind.name}, {where}, {state}'


class _ToLevels(torch.autograd.Function):
    """Take the nearest level; see the module's docstring for gradients.

    A level's gradient is the sum of those of its weights; a weight's is
    ``g * estimator(w, L) + pull``.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, levels: Tensor, estimator: Any, pull: Any
    ) -> Tensor:
        codes = nearest_level(rows, levels)
        values = levels.gather(1, codes)
        ctx.save_for_backward(rows, levels, codes, values)
        ctx.estimator, ctx.pull = estimator, pull
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        (gradient,) = gradients
        rows, levels, codes, values = ctx.saved_tensors
        of_rows = of_levels = None
        if ctx.needs_input_grad[0]:
            of_rows = gradient * ctx.estimator(rows, levels)
            added = ctx.pull.gradient(rows, values, codes, gradient)
            of_rows = of_rows if added is None else of_rows + added
        if ctx.needs_input_grad[1]:
            of_levels = torch.zeros_like(levels)
            of_levels.scatter_add_(1, codes, gradient)
        return of_rows, of_levels, None, None


def kind_of(name: Any) -> Levels:
    """Return the kind of grid with this name.

    Raises:
        SettingError: If there is none.
    """
    return LEVELS[Choice(choices=tuple(LEVELS)).read(name, name='levels')]()


def _make_pull(given: str | Mapping[str, Any]) -> Pull:
    if isinstance(given, str):
        given = {'type': given}
    Table().read(given, name='pull')
    settings = dict(given)
    if 'type' not in settings:
        raise refuse('pull', given, f'give its type, one of {tuple(PULLS)}')
    name = Choice(choices=tuple(PULLS)).read(
        settings.pop('type'), name='pull.type'
    )
    kind = PULLS[name]
    try:
        return kind(**settings)
    except TypeError as error:
        raise refuse('pull', given, f'{name} has no such argument') from error
