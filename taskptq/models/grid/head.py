"""Common parts of heads that localize by classification over a grid.

A config alone turns a head of mmdet into a grid head:

    rpn_head=dict(
        type='taskptq.GridRPNHead',
        grid=dict(alpha=2, beta=1, num_intervals=10),
        loss_bbox=dict(type='taskptq.GridLoss', _delete_=True))

Its regression layer predicts n + 1 logits per coordinate; assigners,
samplers, classification and the box coder stay the host's. The coder is
wrapped: the host's encodes targets, and decodes the expectations of the
logits (computed in float32, after the host has chosen its top candidates), so
nothing of the host's decoding is repeated here.

The regression layer (`rpn_reg`, `fc_reg`, `retina_reg`) is an edge layer with
8 bits or more, unless the qconfig overrides it. This runs it at 4 bits (3 or
2 work the same way):

    overrides=[dict(pattern='*.fc_reg', weight=dict(num_bits=4),
                    activation=dict(num_bits=4))]

Its weights have one scale per output channel, so one per logit of each
coordinate. Softmax and expectation stay float, as the swap report says.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from mmdet.models.task_modules.coders import BaseBBoxCoder
from mmengine.logging import print_log
from torch import Tensor, nn

from taskptq.methods.box_grid.box_grid import BoxGrid
from taskptq.registry import MODELS

__all__ = ['GridBoxCoder', 'GridHeadMixin', 'GridLoss']

UNCERTAINTIES = (None, 'min', 'match')


@MODELS.register_module()
class GridLoss(nn.Module):
    """Cross-entropy over a grid, with a term for its uncertainty.

    L = CE(p, p*) + weight * U, summed over the coordinates of a box, with
    U = 0, U = H(p) for 'min' (UGS) or U = |H(p) - H(p*)| for 'match' (C-BBL,
    our reconstruction). The head that owns the loss binds its grid.

    Args:
        uncertainty: None, 'min' or 'match'.
        uncertainty_weight: Factor of U; UGS uses 0.5 for 'min'.
        loss_weight: Factor of the whole loss.
        reduction: 'none', 'mean' or 'sum'.

    Raises:
        ValueError: If a setting is not one of these.
    """

    def __init__(
        self,
        *,
        uncertainty: str | None = None,
        uncertainty_weight: float = 0.5,
        loss_weight: float = 1.0,
        reduction: str = 'mean',
    ) -> None:
        super().__init__()
        if uncertainty not in UNCERTAINTIES:
            raise ValueError(
                f'GridLoss: uncertainty={uncertainty!r}, choose one of '
                f'{UNCERTAINTIES}'
            )
        if reduction not in ('none', 'mean', 'sum'):
            raise ValueError(
                f"GridLoss: reduction={reduction!r}, choose 'none', 'mean' "
                "or 'sum'"
            )
        self.uncertainty = uncertainty
        self.uncertainty_weight = uncertainty_weight
        self.loss_weight = loss_weight
        self.reduction = reduction
        # In a tuple: the grid is the head's child, not the loss's.
        self._grid: tuple[BoxGrid, ...] = ()

    def bind(self, grid: BoxGrid) -> None:
        """Set the grid of the head that owns this loss."""
        self._grid = (grid,)

    @property
    def grid(self) -> BoxGrid:
        """The grid of the logits.

        Raises:
            RuntimeError: If no head has bound one.
        """
        if not self._grid:
            raise RuntimeError(
                'GridLoss has no grid: use it as loss_bbox of a grid head, '
                'e.g. taskptq.GridRPNHead'
            )
        return self._grid[0]

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """Return the weighted loss.

        Args:
            pred: Logits, (N, 4 (n + 1)) or (N, 4, n + 1).
            target: Encoded boxes, (N, 4), clamped to the grid.
            weight: (N,) or (N, 4); rows without any are skipped.
            avg_factor: Divisor of the mean instead of 4 N.
            reduction_override: Reduction for this call.

        Returns:
            A scalar, or (N, 4) for the reduction 'none'.
        """
        reduction = reduction_override or self.reduction
        logits = pred.reshape(*target.shape, self.grid.num_points)
        if weight is None:
            weight = target.new_ones(())
        elif weight.dim() < target.dim():
            weight = weight[..., None]
        if reduction == 'none':
            return (
                self.loss_weight * weight * self.per_coordinate(logits, target)
            )
        divisor = target.numel() if avg_factor is None else avg_factor
        if weight.dim():
            # Skip the softmax of negative anchors, which are the most.
            rows = (weight > 0).any(dim=-1)
            logits, target, weight = logits[rows], target[rows], weight[rows]
        total = (weight * self.per_coordinate(logits, target)).sum()
        if reduction == 'mean':
            total = total / (divisor + torch.finfo(torch.float32).eps)
        return self.loss_weight * total

    def per_coordinate(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return CE + weight * U of each coordinate.

        Args:
            logits: (..., n + 1).
            target: (...).
        """
        loss = self.grid.cross_entropy(logits, target)
        if self.uncertainty is None:
            return loss
        return loss + self.uncertainty_weight * self.uncertainty_term(
            logits, target
        )

    def uncertainty_term(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return U of each coordinate, without its factor.

        Args:
            logits: (..., n + 1).
            target: (...).
        """
        if self.uncertainty == 'match':
            return self.grid.entropy_gap(logits, target)
        return self.grid.entropy(logits)


class GridBoxCoder(BaseBBoxCoder):
    """A host's box coder that decodes logits over a grid.

    Its ``encode_size`` makes the host reserve n + 1 channels per coordinate.
    Targets are those of the host's coder.

    Args:
        coder: Coder of the host.
        grid: Grid of its encoded coordinates.
    """

    def __init__(self, *, coder: BaseBBoxCoder, grid: BoxGrid) -> None:
        super().__init__(use_box_type=coder.use_box_type)
        self.coder = coder
        self.grid = grid
        self.encode_size = coder.encode_size * grid.num_points

    def expectation(self, logits: Tensor) -> Tensor:
        """Return encoded coordinates, (..., K (n + 1)) -> (..., K)."""
        points = self.grid.num_points
        # -1 would be ambiguous without rows.
        return self.grid(
            logits.unflatten(-1, (logits.shape[-1] // points, points))
        )

    def encode(self, bboxes: Any, gt_bboxes: Any, **kwargs: Any) -> Tensor:
        """Return boxes as the host's coder encodes them, (N, 4)."""
        return self.coder.encode(bboxes, gt_bboxes, **kwargs)

    def decode(
        self, bboxes: Any, pred_bboxes: Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """Decode the expectations by the host's coder.

        Args:
            bboxes: Priors, (N, 4) in pixels.
            pred_bboxes: Logits, (N, K 4 (n + 1)) with K boxes per prior.
            *args: Arguments of the host's coder, e.g. ``max_shape``.
            **kwargs: Arguments of the host's coder.
        """
        return self.coder.decode(
            bboxes, self.expectation(pred_bboxes), *args, **kwargs
        )


class GridHeadMixin:
    """Make a head of mmdet localize over a grid; precedes it in the bases.

    The head must call :meth:`use_grid` after making its coder and loss and
    before making its regression layer.
    """

    # Settings of BoxGrid if the config gives none.
    default_grid: ClassVar[Mapping[str, Any]]
    # Names of the layers whose shapes differ from the host's.
    regression_layers: ClassVar[tuple[str, ...]]

    def use_grid(self, grid: Mapping[str, Any] | None) -> None:
        """Make the grid, wrap the coder with it and bind it to the loss.

        Args:
            grid: Arguments of BoxGrid; None is the head's default.

        Raises:
            ValueError: If ``loss_bbox`` and ``reg_decoded_bbox`` don't fit
                together.
        """
        self.box_grid = BoxGrid(**(grid or self.default_grid))
        self.bbox_coder = GridBoxCoder(
            coder=self.bbox_coder, grid=self.box_grid
        )
        is_grid_loss = isinstance(self.loss_bbox, GridLoss)
        if is_grid_loss == bool(self.reg_decoded_bbox):
            raise ValueError(
                f'{type(self).__name__}: loss_bbox='
                f'{type(self.loss_bbox).__name__} with reg_decoded_bbox='
                f'{self.reg_decoded_bbox}: use taskptq.GridLoss and False, '
                'or a box loss and True'
            )
        if is_grid_loss:
            self.loss_bbox.bind(self.box_grid)

    def get_targets(self, *args: Any, **kwargs: Any) -> Any:
        """Return the host's targets: four numbers per box, not logits."""
        wrapped = self.bbox_coder
        self.bbox_coder = wrapped.coder
        try:
            return super().get_targets(*args, **kwargs)
        finally:
            self.bbox_coder = wrapped

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """Load everything except regression layers of another shape.

        The caller passes a copy, so entries may be replaced.
        """
        kept = []
        for name in self.regression_layers:
            # Only its own weights: a quantizer's state may change shape.
            layer = self.get_submodule(name)
            own = {
                f'{prefix}{name}.{key}': value.detach()
                for key, value in layer.named_parameters(recurse=False)
            }
            given = {key: state_dict.get(key) for key in own}
            if all(_fits(given[key], own[key]) for key in own):
                continue
            kept.append(f'{prefix}{name}')
            state_dict.update(
                {key: value.clone() for key, value in own.items()}
            )
        if kept:
            print_log(
                f'{", ".join(kept)}: kept as initialized, because the '
                "checkpoint's regression layer has another shape; "
                'everything else was loaded: train this part',
                logger='current',
                level=logging.WARNING,
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _fits(given: Any, own: Tensor) -> bool:
    """Return True if missing or of this layer's shape."""
    return given is None or tuple(given.shape) == tuple(own.shape)
