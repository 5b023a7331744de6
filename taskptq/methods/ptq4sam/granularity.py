"""Grids for softmax outputs, and the search for scale and granularity.

The power grid is ``scale * 2^(-q / tau)``. The outputs of a softmax over few
keys are spread evenly, and a uniform grid with as many levels can be better;
its granularity is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from taskptq.core.search import minimize_bounded

TAUS = (1, 2, 4)
# The tau that stands for the uniform grid over [0, scale].
UNIFORM = 0
# Smallest normal float32; smaller values count as zero.
TINY = torch.finfo(torch.float32).tiny

# One piece of a sample: attention (H, L, N, M), value (H, L, M, D) or None.
Piece = tuple[Tensor, Tensor | None]


def log2_or_zero(x: Tensor) -> Tensor:
    """Return log2(x) as float32, -inf where ``x`` counts as 0."""
    x = x.float()
    return x.log2().masked_fill_(x < TINY, -torch.inf)


def power_codes(log2_x: Tensor, *, scale: Tensor, tau: Tensor | int) -> Tensor:
    """Return ``round(-tau log2(x / scale))``, float, at least 0.

    PTQ4SAM, Lv et al., CVPR 2024, section 3.3.

    Args:
        log2_x: Any shape, from :func:`log2_or_zero`.
        scale: Positive, broadcastable to ``log2_x``.
        tau: Broadcastable to ``log2_x``.
    """
    return ((scale.log2() - log2_x) * tau).round_().clamp_(min=0)


def power_values(
    codes: Tensor, *, scale: Tensor, tau: Tensor | int, num_levels: int
) -> Tensor:
    """Return ``scale * 2^(-codes / tau)``; 0 from ``num_levels`` on."""
    values = torch.exp2(-codes / tau) * scale
    return values.masked_fill_(codes >= num_levels, 0.0)


def grid_codes(
    x: Tensor, *, scale: Tensor, tau: Tensor, num_levels: int
) -> Tensor:
    """Return codes on the power grid or, where tau is 0, the uniform one.

    Both count down from the top level: code 0 is ``scale``.

    Args:
        x: Any shape, in [0, 1].
        scale: Positive, broadcastable to ``x``.
        tau: Broadcastable to ``x``.
        num_levels: Number of levels; larger codes of the power grid mean
            zero.
    """
    codes = power_codes(log2_or_zero(x), scale=scale, tau=tau)
    uniform = tau == UNIFORM
    if bool(uniform.any()):
        top = num_levels - 1
        steps = (x.float() * (top / scale)).round_().clamp_(max=top)
        codes = torch.where(uniform, top - steps, codes)
    return codes


def grid_values(
    codes: Tensor, *, scale: Tensor, tau: Tensor, num_levels: int
) -> Tensor:
    """Return the values of codes from :func:`grid_codes`."""
    values = power_values(codes, scale=scale, tau=tau, num_levels=num_levels)
    uniform = tau == UNIFORM
    if bool(uniform.any()):
        top = num_levels - 1
        steps = (top - codes).clamp(min=0)
        values = torch.where(uniform, steps * (scale / top), values)
    return values


@dataclass(frozen=True, kw_only=True)
class Granularity:
    """Result of the search, for the tensor (G = 1) or each head.

    Errors are ``||A_hat V - A V||_p / ||A V||_p`` over the whole sample,
    each grid at the best scale of its granularity.

    Args:
        tau: (G,), int32; 0 is the uniform grid.
        scale: (G,).
        error: Error of the chosen grid.
        error_tau1: Error of tau = 1.
        error_uniform: Error of the unsigned uniform grid with as many levels.
    """

    tau: Tensor
    scale: Tensor
    error: float
    error_tau1: float
    error_uniform: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain types."""
        return {
            **vars(self),
            'tau': self.tau.tolist(),
            'scale': self.scale.tolist(),
        }


class OutputErrors:
    """Error of attention outputs as a function of the softmax grid.

    Args:
        pieces: The sample; without a value the attention itself counts.
        per_head: Whether to sum errors per head.
        num_levels: Levels of the grids.
        norm_p: The p of the norm.
    """

    def __init__(
        self,
        pieces: Sequence[Piece],
        *,
        per_head: bool,
        num_levels: int,
        norm_p: float,
    ) -> None:
        self.per_head = per_head
        self.num_levels = num_levels
        self.norm_p = norm_p
        self.pieces = [
            (attention, log2_or_zero(attention), value)
            for attention, value in pieces
        ]
        self.targets = [_weigh(piece[0], piece[2]) for piece in self.pieces]
        self.signal = self._sum(lambda a, _: torch.zeros_like(a)).sum()

    def power(self, scale: Tensor, *, tau: int) -> Tensor:
        """Return sum |A_hat V - A V|^p on the power grid, (G,) -> (G,)."""
        scale = scale[:, None, None, None]
        return self._sum(
            lambda _, log2: power_values(
                power_codes(log2, scale=scale, tau=tau),
                scale=scale,
                tau=tau,
                num_levels=self.num_levels,
            )
        )

    def of(self, scale: Tensor, *, tau: int) -> Tensor:
        """Return the error sums on the grid of ``tau``, 0 for uniform."""
        if tau == UNIFORM:
            return self.uniform(scale)
        return self.power(scale, tau=tau)

    def uniform(self, max_val: Tensor) -> Tensor:
        """Return the error sums on the uniform grid over [0, max_val]."""
        top = self.num_levels - 1
        scale = max_val[:, None, None, None] / top
        return self._sum(
            lambda a, _: (a / scale).round_().clamp_(max=top).mul_(scale)
        )

    def relative(self, errors: Tensor) -> float:
        """Turn sums of errors, (G,), into one relative norm."""
        if self.signal == 0:
            return 0.0  # values that are all 0 stay so on any grid
        return float((errors.sum() / self.signal) ** (1 / self.norm_p))

    def _sum(self, quantize: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        parts = []
        for (attention, log2, value), target in zip(
            self.pieces, self.targets, strict=True
        ):
            out = _weigh(quantize(attention, log2), value)
            error = (out - target).abs_().pow_(self.norm_p)
            parts.append(error.flatten(1).sum(dim=1, dtype=torch.float64))
        if self.per_head:
            return torch.stack(parts).sum(dim=0)
        return torch.cat(parts).sum(dim=0, keepdim=True)


def search_granularity(
    errors: OutputErrors, *, max_val: Tensor, taus: Sequence[int] = TAUS
) -> Granularity:
    """Choose tau and scale of least error.

    PTQ4SAM, section 3.3: for each tau the scale in (min(0.1, 0.01 max a),
    max a] of least error; then the tau of least error, on ties the smaller
    one.

    Args:
        errors: Errors of the sample.
        max_val: (G,), the largest attention seen.
        taus: Granularities to choose from; 0 is the uniform grid (ours, not
            in the paper).
    """
    high = max_val.clamp(min=TINY)
    low = (0.01 * high).clamp(max=0.1)
    found = {
        tau: minimize_bounded(
            lambda scale, tau=tau: errors.of(scale, tau=tau),  # type: ignore[misc]
            low=low,
            high=high,
        )
        for tau in sorted({UNIFORM, 1, *taus})
    }
    chosen = sorted(taus)
    index = torch.stack([found[tau][1] for tau in chosen]).argmin(0)[None]
    scales, values = (
        torch.stack([found[tau][i] for tau in chosen]).gather(0, index)[0]
        for i in range(2)
    )
    tau = torch.tensor(chosen, dtype=torch.int32, device=index.device)
    return Granularity(
        tau=tau[index[0]],
        scale=scales,
        error=errors.relative(values),
        error_tau1=errors.relative(found[1][1]),
        error_uniform=errors.relative(found[UNIFORM][1]),
    )


def _weigh(attention: Tensor, value: Tensor | None) -> Tensor:
    return attention if value is None else attention @ value
