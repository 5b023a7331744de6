"""Localization-aware reconstruction: KL of box distributions where boxes are.

A grid head predicts each coordinate of a box as a distribution over points.
The squared error of its logits weighs all of them equally, although a common
shift changes nothing, nor do logits of improbable points. This loss compares
the distributions themselves, at the locations or proposals where the float
model sees objects:

``L = w_box sum_i M_i KL(p_i || q_i) / (sum_i M_i) / I
+ w_other mean_h E_h``

with M the float model's foreground probability (0 below ``least_weight``),
p and q the float and the quantized distribution, I the float model's
information about location (the mean of KL(p_i || mean p) under M, which makes
the term a noise-to-signal ratio like the others), and E_h the focused error
of the remaining heads (:mod:`taskptq.methods.selective_focus.semantic_focus`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from taskptq.core.distributed import mean_over_ranks
from taskptq.core.settings import Flag, Number, Table
from taskptq.methods.selective_focus.semantic_focus import (
    LEAST_FOREGROUND,
    WEIGHT,
    Heads,
    SemanticFocus,
)
from taskptq.reconstruction.losses import NetworkProbe, Outputs, ReconContext
from taskptq.registry import RECON_LOSSES

__all__ = ['ForegroundKLLoss', 'divergence']

# Floor for the information, for heads that predict the same everywhere.
LEAST_INFORMATION = 1e-3


def divergence(quant: Tensor, target: Tensor) -> Tensor:
    """Return KL(p || q) of distributions given by logits, in nats.

    Args:
        quant: Logits of q, (..., n + 1).
        target: Logits of p, same shape.

    Returns:
        (...), at least 0; computed in float32.
    """
    log_p = target.float().log_softmax(dim=-1)
    log_q = quant.float().log_softmax(dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def group_of(name: str) -> str:
    """Return a head's name without its level.

    >>> group_of('rpn_box.2'), group_of('box')
    ('rpn_box', 'box')
    """
    stem, _, level = name.rpartition('.')
    return stem if stem and level.isdigit() else name


@RECON_LOSSES.register_module()
class ForegroundKLLoss:
    """KL of the grid heads on the float model's foreground, and other heads.

    Use it with ``reconstruction.scope='network'`` or ``network_steps`` on a
    model with grid heads whose adapter has ``box_distributions``.

    Args:
        focus: 'soft' weighs by the float model's confidence, 'hard' by
            whether it exceeds ``focus_threshold``, None weighs equally.
        focus_threshold: Confidence of a foreground location, for 'hard'.
        least_weight: Skip locations whose weight is below this share of the
            largest weight on any level: most of an image is background, and
            its distributions would be most of the work.
        eps_bg: Weight of the background by kind of head; None is 0.05 for
            confidence heads and 0 for boxes.
        box_weight: Weight of the distributions.
        other_weight: Weight of all other heads.
        temperature: Divides the logits of both models.
        normalize: Divide the divergence by the float model's information.

    Raises:
        ValueError: If a value is invalid.
    """

    def __init__(
        self,
        *,
        focus: str | None = 'soft',
        focus_threshold: float = 0.3,
        least_weight: float = 0.01,
        eps_bg: Mapping[str, float] | None = None,
        box_weight: float = 1.0,
        other_weight: float = 1.0,
        temperature: float = 1.0,
        normalize: bool = True,
    ) -> None:
        self.least_weight = Number(low=0, high=1).read(
            least_weight, name='least_weight'
        )
        self.focus = SemanticFocus(
            focus=focus,
            threshold=focus_threshold,
            eps_bg=Table(optional=True).read(eps_bg, name='eps_bg') or {},
        )
        positive = Number(above=0, high=1e6)
        self.box_weight = positive.read(box_weight, name='box_weight')
        self.other_weight = WEIGHT.read(other_weight, name='other_weight')
        self.temperature = positive.read(temperature, name='temperature')
        self.normalize = Flag().read(normalize, name='normalize')
        # Plain text, part of the digest of saved states.
        self.recipe = str(self.focus)
        self._information: dict[str, float] = {}
        self._variances: dict[str, Tensor] = {}

    def begin(self, probe: NetworkProbe) -> None:
        """Measure the float heads.

        Args:
            probe: The network before the first step.

        Raises:
            ValueError: If the model has no grid heads.
        """
        self._information = self._measure(
            probe.heads_float, adapter=probe.adapter
        )
        if not self._information:
            raise ValueError(
                f'{type(self).__name__}: {type(probe.adapter).__name__} names '
                'no box distributions: use a model with grid heads, or '
                "loss=dict(type='NetworkUniform')"
            )
        split = probe.adapter.box_distributions
        self._variances = self.focus.variances(
            probe.heads_float,
            adapter=probe.adapter,
            ignored=frozenset(split(probe.heads_float[0])),
        )

    @torch.no_grad()
    def _measure(
        self, batches: Iterable[Heads], *, adapter: Any
    ) -> dict[str, float]:
        """Return the information of each group of grid heads, in nats."""
        sums: dict[str, list[Tensor]] = {}
        for heads in batches:
            boxes, weights = self._boxes(
                heads,
                self.focus.weights(heads, adapter=adapter),
                adapter=adapter,
            )
            looked = self._looked_at(weights)
            for name, logits in boxes.items():
                places = looked[name]
                added = _moments(
                    logits[places] / self.temperature, weights[name][places]
                )
                old = sums.get(group_of(name))
                sums[group_of(name)] = (
                    added
                    if old is None
                    else [a + b for a, b in zip(old, added, strict=True)]
                )
        found = {}
        for group, (total, mass, entropy) in sums.items():
            total, mass, entropy = (
                mean_over_ranks(x) for x in (total, mass, entropy)
            )
            mean = mass / total.clamp(min=1e-12)
            information = _entropy(mean) - entropy / total.clamp(min=1e-12)
            found[group] = max(float(information), LEAST_INFORMATION)
        return found

    def _looked_at(self, weights: Heads) -> dict[str, Tensor]:
        """Return the locations of each head with enough weight."""
        largest: dict[str, Tensor] = {}
        for name, weight in weights.items():
            if weight.numel():
                top, group = weight.max(), group_of(name)
                largest[group] = torch.maximum(largest.get(group, top), top)
        return {
            name: weight >= self.least_weight * largest.get(group_of(name), 0)
            for name, weight in weights.items()
        }

    @staticmethod
    def _boxes(
        heads: Heads, weights: Heads, *, adapter: Any
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return grid logits (..., n + 1) and weights (...) by head."""
        split = getattr(adapter, 'box_distributions', None)
        boxes: dict[str, Tensor] = {} if split is None else split(heads)
        if split is None or not boxes:
            return {}, {}
        full = {name: weights[name].expand_as(heads[name]) for name in boxes}
        return boxes, {
            name: weight[..., 0] for name, weight in split(full).items()
        }

    def __call__(
        self, quant_out: Outputs, float_out: Outputs, context: ReconContext
    ) -> Tensor:
        """Return the loss of one minibatch.

        Raises:
            ValueError: If the unit isn't the whole network.
        """
        if (
            context.unit
            or not isinstance(quant_out, dict)
            or (not self._information)
        ):
            raise ValueError(
                f'{type(self).__name__} on the unit {context.unit!r}: it '
                "needs named heads; set reconstruction.scope='network' or "
                'network_steps'
            )
        assert isinstance(float_out, dict)
        adapter = context.adapter
        focused = self.focus.weights(float_out, adapter=adapter)
        boxes, weights = self._boxes(float_out, focused, adapter=adapter)
        quant = adapter.box_distributions(quant_out)
        of_boxes = self._divergence(quant, boxes, weights)
        loss: Tensor = self.box_weight * of_boxes
        if not self.other_weight:
            return loss
        others = self.focus.errors(
            quant_out,
            float_out,
            variances=self._variances,
            adapter=adapter,
            weights={
                name: weight
                for name, weight in focused.items()
                if name not in boxes
            },
        )
        if others:
            loss = loss + self.other_weight * _mean_of_groups(others)
        return loss

    def _divergence(
        self, quant: Heads, boxes: Heads, weights: Heads
    ) -> Tensor:
        """Return the mean divergence over groups of heads."""
        sums: dict[str, Tensor] = {}
        totals: dict[str, Tensor] = {}
        looked = self._looked_at(weights)
        for name, target in boxes.items():
            group, places = group_of(name), looked[name]
            weight = weights[name][places]
            found = divergence(
                quant[name][places] / self.temperature,
                target[places] / self.temperature,
            )
            sums[group] = sums.get(group, 0) + (weight * found).sum()
            totals[group] = totals.get(group, 0) + weight.sum()
        terms = [
            value
            / totals[group].clamp(min=LEAST_FOREGROUND)
            / (self._information[group] if self.normalize else 1.0)
            for group, value in sums.items()
        ]
        return torch.stack(terms).mean()


def _mean_of_groups(errors: Heads) -> Tensor:
    """Return the mean over groups of the mean over their levels."""
    groups: dict[str, list[Tensor]] = {}
    for name, error in errors.items():
        groups.setdefault(group_of(name), []).append(error)
    means = [torch.stack(found).mean() for found in groups.values()]
    return torch.stack(means).mean()


def _moments(logits: Tensor, weight: Tensor) -> list[Tensor]:
    """Return the weighted sums of 1, p (n + 1,) and the entropy of p."""
    p = logits.double().softmax(dim=-1).flatten(0, -2)
    weights = weight.double().flatten()
    return [
        weights.sum(),
        (weights[:, None] * p).sum(dim=0),
        (weights * _entropy(p)).sum(),
    ]


def _entropy(p: Tensor) -> Tensor:
    return -torch.xlogy(p, p).sum(dim=-1)
