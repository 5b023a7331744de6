"""Semantic Guided Focus: weigh a head's error by where it matters.

Fan et al., 'Selective Focus: Investigating Semantics Sensitivity in
Post-training Quantization for Lane Detection', AAAI 2024, emphasize the
foreground by the float model's own confidence; we could not read the
equations. The formulas here are our reconstruction, and each choice is a
setting:

``L_i = sum_p (M_i(p) + eps) |h_hat_i(p) - h_i(p)|^2
/ (C_i sum_p (M_i(p) + eps)) / (Var_i + var_eps)``

with ``M_i`` the confidence at the locations p of head i, C_i its channels and
``Var_i`` the variance of the float head under the same weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from taskptq.core.distributed import mean_over_ranks
from taskptq.core.settings import (
    Choice,
    Items,
    Number,
    Table,
    check_fields,
    setting,
)
from taskptq.methods.selective_focus.head_swaps import head_names

FOCI = ('soft', 'hard', 'decoded')
NORMALIZATIONS = ('head', 'channel')
# Rule for weights of loss terms.
WEIGHT = Number(low=0, high=1e6)
KINDS = ('confidence', 'regression')
EPS_BG = {'confidence': 0.05, 'regression': 0.0}
# Floor for the sum of weights: a batch with less foreground than one element
# says little, so its error is not scaled up.
LEAST_FOREGROUND = 1.0

Heads = Mapping[str, Tensor]
# Metainfo of each image of a batch.
Metas = Sequence[Mapping[str, Any]]


def focused_error(quant: Tensor, target: Tensor, *, weight: Tensor) -> Tensor:
    """Return the weighted mean of the squared error.

    Args:
        quant: Head of the quantized model, any shape.
        target: Head of the float model, same shape.
        weight: Non-negative, broadcastable to the head. A tensor of the
            head's shape may be divided by a variance beforehand.
    """
    squared = (quant.float() - target.float()).square()
    total = (squared * weight).sum()
    full = weight.expand_as(squared).sum()
    return total / full.clamp(min=LEAST_FOREGROUND)


@dataclass(frozen=True, kw_only=True)
class SemanticFocus:
    """Weights of locations and scales of heads.

    Args:
        focus: 'soft' weighs by the confidence, 'hard' by whether it exceeds
            ``threshold``, 'decoded' by the distance to a prediction that
            survives post-processing, None weighs all locations equally.
        threshold: Confidence of a foreground location, for 'hard'.
        eps_bg: Weight of the background by kind of head; overrides
            ``EPS_BG``. Noise on the background of a confidence head makes
            false lanes, on that of a regression head it has no effect.
        head_kinds: Name pattern -> 'confidence' or 'regression'; the first
            match wins, then the adapter's ``head_kinds``. Other heads are
            confidence heads.
        focus_kinds: Kinds of heads to focus; others weigh all locations
            equally. Decoding reads confidence everywhere, but regression
            only where confidence is high: ``('regression',)`` focuses on
            the values that are read.
        normalize: 'head' divides by the variance of the whole head,
            'channel' by that of each channel, None by nothing.
        var_eps: Added to each variance.

    Raises:
        ValueError: If a value is invalid.
    """

    focus: str | None = setting('soft', Choice(choices=FOCI, optional=True))
    threshold: float = 0.3
    eps_bg: Mapping[str, float] = setting(
        rule=Table(of=WEIGHT, keys=KINDS), factory=dict
    )
    head_kinds: Mapping[str, str] = setting(
        rule=Table(of=Choice(choices=KINDS)), factory=dict
    )
    focus_kinds: Sequence[str] = setting(
        KINDS, Items(of=Choice(choices=KINDS), what='a list of kinds of heads')
    )
    normalize: str | None = setting(
        'head', Choice(choices=NORMALIZATIONS, optional=True)
    )
    var_eps: float = setting(1e-6, Number(low=0, high=1))

    def __post_init__(self) -> None:
        """Check the settings."""
        check_fields(self)
        threshold = Number(low=0, below=1)
        threshold.read(self.threshold, name='focus_threshold')
        object.__setattr__(self, 'eps_bg', {**EPS_BG, **self.eps_bg})

    def kind_of(self, name: str, *, adapter: Any = None) -> str:
        """Return the kind of a head by its name."""
        own = getattr(adapter, 'head_kinds', None) or {}
        for kinds in (self.head_kinds, own):
            for pattern, kind in kinds.items():
                if fnmatchcase(name, pattern):
                    return str(kind)
        return 'confidence'

    @torch.no_grad()
    def weights(
        self, heads: Heads, *, adapter: Any, metas: Metas = ()
    ) -> dict[str, Tensor]:
        """Return the weight of each location, ``M + eps``.

        Args:
            heads: Named outputs of the float model.
            adapter: Adapter whose ``foreground_proxy`` returns the
                confidence, in [0, 1]; for 'decoded',
                ``decoded_proxy(heads, metas)`` the proximity.
            metas: Metainfo of each image, for 'decoded'.

        Raises:
            ValueError: If an adapter for 'decoded' has no
                ``decoded_proxy``.
        """
        names = head_names(heads)
        if self.focus is None:
            return {name: heads[name].new_ones(()).float() for name in names}
        weights = {}
        proxies = self._proxies(heads, adapter=adapter, metas=metas)
        for name in names:
            kind = self.kind_of(name, adapter=adapter)
            if kind not in self.focus_kinds:
                weights[name] = heads[name].new_ones(()).float()
                continue
            proxy = proxies.get(name, heads[name].new_ones(()))
            proxy = proxy.detach().float()
            if self.focus == 'hard':
                proxy = (proxy > self.threshold).float()
            weights[name] = proxy + self.eps_bg[kind]
        return weights

    def _proxies(
        self, heads: Heads, *, adapter: Any, metas: Metas
    ) -> Mapping[str, Tensor]:
        if self.focus != 'decoded':
            confidence: Mapping[str, Tensor] = adapter.foreground_proxy(heads)
            return confidence
        decoded = getattr(adapter, 'decoded_proxy', None)
        if decoded is None:
            raise ValueError(
                f"focus='decoded': {type(adapter).__name__} has no "
                "decoded_proxy; use focus='soft'"
            )
        near: Mapping[str, Tensor] = decoded(heads, metas)
        return near

    @torch.no_grad()
    def variances(
        self,
        batches: Iterable[Heads],
        *,
        adapter: Any,
        metas: Iterable[Metas] | None = None,
        ignored: frozenset[str] = frozenset(),
    ) -> dict[str, Tensor]:
        """Return the divisor of each head's squared error.

        Args:
            batches: Named outputs of the float model on calibration data.
            adapter: Provides the confidence and, as ``channel_dims`` (name
                -> dimensions), the channel dimensions of heads.
            metas: Metainfo of each batch, for 'decoded'.
            ignored: Names of heads to leave out.

        Returns:
            By head, one element, or with 'channel' a tensor that broadcasts
            to the head.
        """
        moments: dict[str, _Moments] = {}
        known = repeat(()) if metas is None else metas
        for heads, images in zip(batches, known, strict=False):
            weights = self.weights(heads, adapter=adapter, metas=images)
            for name, weight in weights.items():
                if name in ignored:
                    continue
                head = heads[name]
                dims: tuple[int, ...] = ()
                if self.normalize == 'channel':
                    dims = channel_dims(name, head, adapter=adapter)
                moments.setdefault(name, _Moments(dims)).add(head, weight)
        if self.normalize is None:
            return {name: torch.ones(()) for name in moments}
        return {
            name: (found.variance() + self.var_eps).float()
            for name, found in moments.items()
        }

    def errors(
        self,
        quant: Heads,
        target: Heads,
        *,
        variances: Heads,
        adapter: Any,
        weights: Heads | None = None,
    ) -> dict[str, Tensor]:
        """Return the focused, normalised error of each head, scalars.

        Args:
            quant: Named outputs of the quantized model.
            target: Named outputs of the float model.
            variances: Divisors from :meth:`variances`.
            adapter: Provides the confidence.
            weights: Weights from :meth:`weights` of the heads to compare;
                None is all heads.
        """
        if weights is None:
            weights = self.weights(target, adapter=adapter)
        errors = {}
        for name, weight in weights.items():
            scale = variances[name].to(target[name].device).rsqrt()
            errors[name] = focused_error(
                quant[name].float() * scale,
                target[name].float() * scale,
                weight=weight,
            )
        return errors


def channel_dims(
    name: str, head: Tensor, *, adapter: Any = None
) -> tuple[int, ...]:
    """Return the channel dimensions of a head.

    Args:
        name: Name of the head.
        head: (B, C, H, W) maps or (B, Q, C) queries, unless the adapter says
            otherwise; (B, Q) has none.
        adapter: May have ``channel_dims``, name -> dimensions; ignored for
            heads with fewer dimensions.
    """
    known: Mapping[str, Sequence[int]] = (
        getattr(adapter, 'channel_dims', None) or {}
    )
    if name in known and max(known[name], default=0) < head.dim():
        return tuple(dim % head.dim() for dim in known[name])
    return {3: (2,), 4: (1,)}.get(head.dim(), ())


class _Moments:
    """Weighted sums of a head over batches, in double precision.

    Args:
        keep: Dimensions not to sum over.
    """

    def __init__(self, keep: tuple[int, ...]) -> None:
        self.keep = keep
        self.sums: Tensor | None = None

    def add(self, head: Tensor, weight: Tensor) -> None:
        """Add one batch; the weight broadcasts to it."""
        if head.numel() == 0:
            return
        values = head.detach().double()
        weights = weight.double().expand_as(values)
        dims = [dim for dim in range(head.dim()) if dim not in self.keep]
        sums = torch.stack(
            [
                part.sum(dim=dims, keepdim=bool(self.keep))
                for part in (
                    weights,
                    weights * values,
                    weights * values.square(),
                )
            ]
        )
        self.sums = sums if self.sums is None else self.sums + sums

    def variance(self) -> Tensor:
        """Return sum w (h - mean)^2 / sum w, 1 without any weight."""
        if self.sums is None:
            return torch.ones(())
        total, first, second = mean_over_ranks(self.sums)
        seen = total > 0
        total = total.where(seen, torch.ones_like(total))
        variance: Tensor = second / total - (first / total).square()
        return variance.clamp(min=0).where(seen, torch.ones_like(total))
