"""Uncertainty-guided refinement: a second look at perturbed features.

UGS (arXiv 2303.01803) trains a grid head a second time on features that were
moved to where it is less certain: for each pyramid level P_i,

    eps_i = rho grad_{P_i} L_UM / ||grad_{P_i} L_UM||_2,

and gamma L_loc(P_i + eps_i) joins the loss. The paper leaves open what is
shared between the passes; here L_UM is the entropy over the positive boxes,
the norm is that of one level of one image, eps is a constant to the gradient,
and the second pass has the weights and the targets of the first. Only training
changes: inference and checkpoints are those of the head. The heads of DETRs
see queries, not the pyramid, and have no refinement.

Dense heads and RPN take ``refinement=dict(rho=0.5, weight=0.1)``. The second
stage takes it in its RoI head, whatever its box head is:

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
        """Make both passes.

        Args:
            head: Holds the GridLoss whose boxes count.
            features: Each (B, C, H, W).
            first: Makes the first pass on features that carry a gradient.
            again: Makes the second pass; returns its losses by name.

        Returns:
            What ``first`` returned, and the weighted loss of the second.
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
    """Move each level of each image by rho towards more uncertainty.

    A level that no box depends on stays where it is. The graph of
    ``uncertainty`` is kept, since the training step needs it as well.

    Args:
        uncertainty: Scalar that depends on the features.
        features: Each (B, C, H, W).
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
    # Not 0 / 0 without positive boxes, and no step of an overflow.
    usable = torch.isfinite(norm) & (norm > 0)
    steps = torch.where(usable, rows / norm, torch.zeros_like(rows))
    return steps.view_as(gradient)


def localization(losses: Mapping[str, Any]) -> Tensor:
    """Add up what the second pass says about places, not classes."""
    total: Tensor | None = None
    for name, value in losses.items():
        if 'bbox' not in name and 'dfl' not in name:
            continue
        parts = value if isinstance(value, (list, tuple)) else [value]
        for part in parts:
            total = part.mean() if total is None else total + part.mean()
    if total is None:
        raise ValueError(
            f'refinement: none of the losses {sorted(losses)} is one of '
            'localization (loss_bbox, loss_rpn_bbox, loss_dfl)'
        )
    return total


@contextmanager
def recorded_uncertainty(head: nn.Module) -> Iterator[list[Tensor]]:
    """Collect the entropy of the boxes of each GridLoss that is computed."""
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
    """Return the weighted entropy of what a GridLoss was called with."""
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
        ValueError: If it has no GridLoss, or a setting is impossible.
    """
    if settings is None:
        return None
    if not any(isinstance(module, GridLoss) for module in head.modules()):
        raise ValueError(
            f'{type(head).__name__}: refinement follows the uncertainty of '
            'grid logits, but the head has no taskptq.GridLoss; set one, or '
            'refinement=None'
        )
    return Refinement(**settings)


class RefinementMixin:
    """Refinement of a dense head or RPN; stands before all its classes.

    Args:
        *args: Arguments of the head.
        refinement: Arguments of Refinement; None trains without.
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
        """Return the host's targets; in a second pass, the first's."""
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
            # A sampler that draws would draw other boxes.
            self._replayed.extend(self._recorded or ())
            self._recorded = None
            return host.loss(features, batch_data_samples)

        try:
            return self.refinement.run(self, x, first=first, again=again)
        finally:
            self._recorded = None
            self._replayed.clear()


class RefinedRoIHeadMixin:
    """Refinement of a second stage; stands before the RoI head's class.

    Args:
        *args: Arguments of the host's RoI head.
        refinement: Arguments of Refinement; None trains without.
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
    """mmdet's CascadeRoIHead with ``refinement`` of each of its stages."""

    def bbox_loss(
        self, stage: int, x: Features, sampling_results: Any
    ) -> dict[str, Any]:
        """Return the host's results; its losses include ``loss_refine``."""
        host = super()
        return self._refine(
            x,
            lambda features: host.bbox_loss(stage, features, sampling_results),
        )
