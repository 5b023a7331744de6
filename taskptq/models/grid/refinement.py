"""Uncertainty-guided refinement: a second pass on perturbed features.

UGS (arXiv 2303.01803) trains a grid head a second time on features that are
shifted to make it less certain: for each pyramid level P_i,

    eps_i = rho grad_{P_i} L_UM / ||grad_{P_i} L_UM||_2,

and gamma L_loc(P_i + eps_i) is added to the loss. The paper doesn't say what
the passes share. Here L_UM is the entropy over the positive boxes, the norm
is per level and image, eps is constant for the gradient, and the second pass
reuses weights and targets of the first. Only training changes, not inference
or checkpoints. Heads of DETRs read queries, not the pyramid, and have no
refinement.

Dense heads and RPN accept ``refinement=dict(rho=0.5, weight=0.1)``. For the
second stage it is a setting of the RoI head, whatever its box head:

    roi_head=dict(
        type='taskptq.RefinedStandardRoIHead',
        refinement=dict(rho=0.5, weight=0.1))
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead
from torch import Tensor, nn

from taskptq.models.grid.head import GridLoss
from taskptq.registry import MODELS

__all__ = [
    'RefinedCascadeRoIHead',
    'RefinedStandardRoIHead',
    'Refinement',
    'RefinementMixin',
    'perturbed',
]

Features = tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """Settings of the refinement.

    Args:
        rho: L2 norm of the perturbation of each level of each image.
        weight: Factor gamma of the second pass's localization loss.

    Raises:
        ValueError: If one of them is negative.
    """

    rho: float = 0.5
    weight: float = 0.1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value >= 0:
                raise ValueError(
                    f'refinement: {name}={value}, give a number of at least 0'
                )

    def run(
        self,
        head: nn.Module,
        features: Sequence[Tensor],
        *,
        first: Callable[[Features], Any],
        again: Callable[[Features], Mapping[str, Any]],
    ) -> tuple[Any, Tensor]:
        """Run both passes.

        Args:
            head: Head with the GridLoss whose boxes count.
            features: Pyramid levels, (B, C, H, W) each.
            first: Runs the first pass on features that carry a gradient.
            again: Runs the second pass and returns its losses by name.

        Returns:
            Result of ``first``, and the weighted loss of the second pass.
        """
        inputs = tuple(
            x if x.requires_grad else x.detach().requires_grad_()
            for x in features
        )
        with recorded_uncertainty(head) as terms:
            result = first(inputs)
        if terms:
            inputs = perturbed(sum(terms), inputs, rho=self.rho)
        return result, self.weight * localization(again(inputs))


def perturbed(
    uncertainty: Tensor, features: Features, *, rho: float
) -> Features:
    """Shift each level of each image by rho towards more uncertainty.

    A level that no box depends on stays unchanged. The graph of
    ``uncertainty`` is kept, because the training step needs it too.

    Args:
        uncertainty: Scalar that depends on the features.
        features: Pyramid levels, (B, C, H, W) each.
        rho: L2 norm of a step.
    """
    gradients = torch.autograd.grad(
        uncertainty, features, retain_graph=True, allow_unused=True
    )
    return tuple(
        x if g is None else x + (rho * unit_steps(g)).to(x.dtype)
        for x, g in zip(features, gradients, strict=True)
    )


def unit_steps(gradient: Tensor) -> Tensor:
    """Divide each image's gradient, (B, C, H, W), by its L2 norm."""
    rows = gradient.detach().float().flatten(1)
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    # Avoid 0 / 0 without positive boxes, and steps from an overflow.
    usable = torch.isfinite(norm) & (norm > 0)
    steps = torch.where(usable, rows / norm, torch.zeros_like(rows))
    return steps.view_as(gradient)


def localization(losses: Mapping[str, Any]) -> Tensor:
    """Sum the localization losses of the second pass."""
    total: Tensor | None = None
    for name, value in losses.items():
        if 'bbox' not in name and 'dfl' not in name:
            continue
        parts = value if isinstance(value, (list, tuple)) else [value]
        for part in parts:
            total = part.mean() if total is None else total + part.mean()
    if total is None:
        raise ValueError(
            f'refinement: none of the losses {sorted(losses)} is a '
            'localization loss (loss_bbox, loss_rpn_bbox, loss_dfl)'
        )
    return total


@contextmanager
def recorded_uncertainty(head: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the entropy of the boxes in each call of a GridLoss."""
    terms: list[Tensor] = []

    def record(
        loss: nn.Module, args: Any, kwargs: dict[str, Any], output: Any
    ) -> None:
        del output
        terms.append(entropy_of(loss, *args, **kwargs))

    handles = [
        module.register_forward_hook(record, with_kwargs=True)
        for module in head.modules()
        if isinstance(module, GridLoss)
    ]
    try:
        yield terms
    finally:
        for handle in handles:
            handle.remove()


def entropy_of(
    loss: Any,
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    avg_factor: Any = None,
    reduction_override: str | None = None,
) -> Tensor:
    """Return the weighted entropy of the arguments of a GridLoss call."""
    del avg_factor, reduction_override  # a factor, which the norm cancels
    logits = pred.reshape(*target.shape, loss.grid.num_points)
    if weight is None:
        return loss.grid.entropy(logits).sum()
    weight = weight if weight.dim() == target.dim() else weight[..., None]
    rows = (weight > 0).any(dim=-1)
    return (weight[rows] * loss.grid.entropy(logits[rows])).sum()


def read_settings(
    head: nn.Module, settings: Mapping[str, Any] | None
) -> Refinement | None:
    """Check that a head can be refined.

    Raises:
        ValueError: If it has no GridLoss, or a setting is invalid.
    """
    if settings is None:
        return None
    if not any(isinstance(module, GridLoss) for module in head.modules()):
        raise ValueError(
            f'{type(head).__name__}: refinement follows the uncertainty of '
            'grid logits, but the head has no taskptq.GridLoss: set one, or '
            'refinement=None'
        )
    return Refinement(**settings)


class RefinementMixin:
    """Refinement of a dense head or RPN; comes first in the bases.

    Args:
        *args: Arguments of the head.
        refinement: Arguments of Refinement; None turns it off.
        **kwargs: Arguments of the head.
    """

    def __init__(
        self,
        *args: Any,
        refinement: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.refinement = read_settings(self, refinement)
        self._recorded: list[Any] | None = None
        self._replayed: deque[Any] = deque()

    def loss(self, x: Any, batch_data_samples: Any) -> dict[str, Any]:
        """Return the host's losses, and ``loss_refine``."""
        host = super()
        if self.refinement is None or not self.training:
            return host.loss(x, batch_data_samples)
        losses, extra = self._refined(
            x,
            batch_data_samples,
            lambda features: host.loss(features, batch_data_samples),
        )
        return {**losses, 'loss_refine': extra}

    def loss_and_predict(
        self, x: Any, batch_data_samples: Any, proposal_cfg: Any = None
    ) -> tuple[dict[str, Any], Any]:
        """Return the host's losses with ``loss_refine``, and predictions."""
        host = super()

        def first(features: Any) -> Any:
            return host.loss_and_predict(
                features, batch_data_samples, proposal_cfg=proposal_cfg
            )

        if self.refinement is None or not self.training:
            return first(x)
        (losses, predictions), extra = self._refined(
            x, batch_data_samples, first
        )
        return {**losses, 'loss_refine': extra}, predictions

    def get_targets(self, *args: Any, **kwargs: Any) -> Any:
        """Return the host's targets; in a second pass, those of the first."""
        if self._replayed:
            return self._replayed.popleft()
        targets = super().get_targets(*args, **kwargs)
        if self._recorded is not None:
            self._recorded.append(targets)
        return targets

    def _refined(
        self,
        x: Any,
        batch_data_samples: Any,
        first: Callable[[Features], Any],
    ) -> tuple[Any, Tensor]:
        host = super()
        self._recorded = []

        def again(features: Features) -> Mapping[str, Any]:
            # A random sampler would draw other boxes.
            self._replayed.extend(self._recorded or ())
            self._recorded = None
            return host.loss(features, batch_data_samples)

        try:
            return self.refinement.run(self, x, first=first, again=again)
        finally:
            self._recorded = None
            self._replayed.clear()


class RefinedRoIHeadMixin:
    """Refinement of a second stage; precedes the RoI head in the bases.

    Args:
        *args: Arguments of the host's RoI head.
        refinement: Arguments of Refinement; None turns it off.
        **kwargs: Arguments of the host's RoI head.
    """

    def __init__(
        self,
        *args: Any,
        refinement: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.refinement = read_settings(self, refinement)

    def _refine(
        self, x: Features, run: Callable[[Features], dict[str, Any]]
    ) -> dict[str, Any]:
        """Run a stage's ``bbox_loss`` on features, twice in training."""
        if self.refinement is None or not self.training:
            return run(x)
        results, extra = self.refinement.run(
            self,
            x,
            first=run,
            again=lambda features: run(features)['loss_bbox'],
        )
        results['loss_bbox'] = {**results['loss_bbox'], 'loss_refine': extra}
        return results


@MODELS.register_module()
class RefinedStandardRoIHead(RefinedRoIHeadMixin, StandardRoIHead):
    """mmdet's StandardRoIHead with ``refinement``, for a grid box head."""

    def bbox_loss(self, x: Features, sampling_results: Any) -> dict[str, Any]:
        """Return the host's results; its losses include ``loss_refine``."""
        host = super()
        return self._refine(
            x, lambda features: host.bbox_loss(features, sampling_results)
        )


@MODELS.register_module()
class RefinedCascadeRoIHead(RefinedRoIHeadMixin, CascadeRoIHead):
    """mmdet's CascadeRoIHead with ``refinement`` of each stage."""

    def bbox_loss(
        self, stage: int, x: Features, sampling_results: Any
    ) -> dict[str, Any]:
        """Return the host's results; its losses include ``loss_refine``."""
        host = super()
        return self._refine(
            x,
            lambda features: host.bbox_loss(stage, features, sampling_results),
        )
