"""Heads of Deformable DETR and DINO that refine boxes over a grid.

A DETR of this family shifts a reference box in inverse-sigmoid space. Here
the shift is an expectation over a grid, for each decoder layer and for the
proposals of the encoder: T = logit(box) - logit(reference), trained by
cross-entropy against the matched object. The matcher stays, and so do the L1
and IoU losses on the decoded boxes:

    bbox_head=dict(
        type='taskptq.GridDINOHead',
        grid=dict(alpha=6, beta=1 / 3, num_intervals=16),
        loss_grid=dict(type='taskptq.GridLoss', uncertainty='min'))

The detector and its decoder call the branches and get four numbers, as from
the host's. The loss also needs logits and references: they are appended to
the boxes and pass the host's loss functions, which only index queries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from mmdet.models.dense_heads import DeformableDETRHead, DINOHead
from mmdet.models.layers import inverse_sigmoid
from mmdet.registry import MODELS as MMDET_MODELS
from mmdet.utils import reduce_mean
from mmengine.model import bias_init_with_prob
from torch import Tensor, nn

from taskptq.methods.box_grid.box_grid import BoxGrid
from taskptq.models.grid.head import GridHeadMixin
from taskptq.registry import MODELS

__all__ = [
    'GridBranch',
    'GridDINOHead',
    'GridDeformableDETRHead',
    'tilted_logits',
]

# Deformable DETR's initial logit for sizes if references have none.
START_OF_SIZES = -2.0


class GridBranch(nn.Sequential):
    """Regression branch that predicts logits and returns expectations.

    Its layers are numbered as in the host's branch.

    Args:
        *layers: Layers; the last one has 4 (n + 1) output channels.
        grid: The head's grid.
        remember: Keep input and logits of the last training call, for the
            head's loss.
    """

    def __init__(
        self, *layers: nn.Module, grid: BoxGrid, remember: bool = False
    ) -> None:
        super().__init__(*layers)
        self.grid = grid
        self.remember = remember
        self.last: tuple[Tensor, Tensor] | None = None

    @property
    def output_layer(self) -> nn.Module:
        """The layer that predicts the logits."""
        return self[-2]

    def logits(self, x: Tensor) -> Tensor:
        """Return (..., 4, n + 1) of (..., C)."""
        for layer in list(self)[:-1]:
            x = layer(x)
        return x.unflatten(-1, (4, self.grid.num_points))

    def forward(self, x: Tensor) -> Tensor:
        """Return the shift of each coordinate, (..., C) -> (..., 4)."""
        logits = self.logits(x)
        if self.remember and self.training:
            self.last = (x, logits)
        return self.grid(logits)


def tilted_logits(grid: BoxGrid, *, mean: float) -> Tensor:
    """Return the flattest logits with a given expectation, (n + 1,).

    They are k y_i, of the distribution with the most entropy among those
    with that mean. k is found by bisection.

    Args:
        grid: Grid.
        mean: Expectation; clamped to the grid.
    """
    points = grid.points.double()
    low, high = -64.0 / grid.alpha, 64.0 / grid.alpha
    for _ in range(60):
        middle = (low + high) / 2
        if float((points * middle).softmax(dim=0) @ points) < mean:
            low = middle
        else:
            high = middle
    return (points * low).float()


class GridDETRHeadMixin(GridHeadMixin):
    """Common parts of both heads; precedes the host's class in the bases.

    Args:
        *args: Arguments of the host's head.
        grid: Arguments of BoxGrid, in inverse-sigmoid units.
        loss_grid: Config of a GridLoss.
        **kwargs: Arguments of the host's head.

    Raises:
        ValueError: If the grid is one-sided.
    """

    # Reaches 1 / 400 of the image for queries without a reference size.
    default_grid: ClassVar[Mapping[str, Any]] = {
        'alpha': 6.0,
        'beta': 1 / 3,
        'num_intervals': 16,
    }

    def __init__(
        self,
        *args: Any,
        grid: Mapping[str, Any] | None = None,
        loss_grid: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        # The host makes its layers in __init__.
        self.grid_settings = grid
        super().__init__(*args, **kwargs)
        self.loss_grid = MMDET_MODELS.build(
            dict(loss_grid or {'type': 'taskptq.GridLoss'})
        )
        self.loss_grid.bind(self.box_grid)
        self._matched: tuple[Any, ...] = ()
        self._decoder_logits: Tensor | None = None

    @property
    def regression_layers(self) -> tuple[str, ...]:
        """Names of the last layers of the branches."""
        last = 2 * self.num_reg_fcs
        return tuple(
            f'reg_branches.{number}.{last}'
            for number in range(len(self.reg_branches))
        )

    def _init_layers(self) -> None:
        self.box_grid = BoxGrid(**(self.grid_settings or self.default_grid))
        if self.box_grid.one_sided:
            raise ValueError(
                f'{type(self).__name__}: grid has one_sided=True, but boxes '
                'move both ways: remove it'
            )
        super()._init_layers()
        made: dict[int, GridBranch] = {}
        for branch in self.reg_branches:
            if id(branch) not in made:
                made[id(branch)] = self._grid_branch(branch)
        # With share_pred_layer all branches are one module.
        self.reg_branches = nn.ModuleList(
            [made[id(branch)] for branch in self.reg_branches]
        )
        # The detector calls the last branch, this head the others.
        self.reg_branches[-1].remember = self.as_two_stage

    def _grid_branch(self, branch: nn.Sequential) -> GridBranch:
        *layers, last = branch
        output = type(last)(last.in_features, 4 * self.box_grid.num_points)
        return GridBranch(*layers, output, grid=self.box_grid)

    def init_weights(self) -> None:
        """Start with zero shifts; missing sizes start at sigmoid(-2)."""
        if self.loss_cls.use_sigmoid:
            for layer in self.cls_branches:
                nn.init.constant_(layer.bias, bias_init_with_prob(0.01))
        for branch in self.reg_branches:
            nn.init.zeros_(branch.output_layer.weight)
            nn.init.zeros_(branch.output_layer.bias)
        if not self.as_two_stage:
            start = tilted_logits(self.box_grid, mean=START_OF_SIZES)
            bias = self.reg_branches[0].output_layer.bias
            with torch.no_grad():
                bias.view(4, -1)[2:] = start.to(bias)

    def forward(
        self, hidden_states: Tensor, references: Any
    ) -> tuple[Tensor, Tensor]:
        """Return scores and boxes of each layer, like the host.

        Args:
            hidden_states: (layers, B, N, C).
            references: References of each layer, (B, N, 4) of cx, cy, w, h
                or (B, N, 2) of cx, cy, in [0, 1]; further ones are ignored.

        Returns:
            (layers, B, N, classes) and (layers, B, N, 4), cx, cy, w, h.
        """
        scores, boxes, logits = [], [], []
        for number, hidden in enumerate(hidden_states):
            scores.append(self.cls_branches[number](hidden))
            logits.append(self.reg_branches[number].logits(hidden))
            base = logit_space(references[number])
            boxes.append((self.box_grid(logits[-1]) + base).sigmoid())
        if self.training:
            self._decoder_logits = torch.stack(logits)
        return torch.stack(scores), torch.stack(boxes)

    def loss(
        self,
        hidden_states: Tensor,
        references: Any,
        enc_outputs_class: Tensor | None,
        enc_outputs_coord: Tensor | None,
        batch_data_samples: Any,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """Return the host's losses and a ``loss_grid`` per ``loss_bbox``.

        Args:
            hidden_states: (layers, B, N, C).
            references: See :meth:`forward`.
            enc_outputs_class: Scores of proposals, (B, M, classes), or None.
            enc_outputs_coord: Boxes of proposals, (B, M, 4), or None.
            batch_data_samples: Samples with ``gt_instances``.
            **kwargs: ``dn_meta`` of DINO.
        """
        scores, boxes = self(hidden_states, references)
        logits, self._decoder_logits = self._decoder_logits, None
        if logits is None:
            raise RuntimeError(
                f'{type(self).__name__}: loss was called in eval mode, where '
                'logits are not kept: call train() first'
            )
        bases = torch.stack(
            [
                logit_space(references[number].detach())
                for number in range(len(boxes))
            ]
        )
        proposals = None
        if enc_outputs_coord is not None:
            proposals = self._packed_proposals(
                enc_outputs_class, enc_outputs_coord
            )
        losses = self.loss_by_feat(
            scores,
            pack(boxes, bases, logits),
            enc_outputs_class,
            proposals,
            [sample.gt_instances for sample in batch_data_samples],
            [sample.metainfo for sample in batch_data_samples],
            **kwargs,
        )
        return split_pairs(losses)

    def loss_by_feat_single(
        self,
        cls_scores: Tensor,
        bbox_preds: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        """Return the losses of a layer; ``loss_bbox`` is a pair.

        Args:
            cls_scores: (B, N, classes).
            bbox_preds: Packed boxes, (B, N, 8 + 4 (n + 1)).
            *args: The host's arguments.
            **kwargs: The host's arguments.
        """
        loss_cls, loss_bbox, loss_iou = super().loss_by_feat_single(
            cls_scores, bbox_preds[..., :4], *args, **kwargs
        )
        return loss_cls, [loss_bbox, self._grid_loss(bbox_preds)], loss_iou

    def get_targets(self, *args: Any, **kwargs: Any) -> Any:
        """Return the host's targets, and keep them for ``loss_grid``."""
        targets = super(GridHeadMixin, self).get_targets(*args, **kwargs)
        self._matched = targets
        return targets

    def _grid_loss(self, packed: Tensor) -> Tensor:
        """Return ``loss_grid`` of the queries matched last."""
        _, _, targets, weights, number, _ = self._matched
        self._matched = ()
        chosen = torch.cat(list(weights))[:, 0] > 0
        boxes = torch.cat(list(targets))[chosen]
        packed = packed.flatten(0, 1)[chosen]
        moves = inverse_sigmoid(boxes) - packed[:, 4:8]
        # Proposals on padding lie at infinity and have no finite shift.
        usable = torch.isfinite(moves).all(dim=-1)
        average = reduce_mean(moves.new_tensor([float(number)]))
        loss: Tensor = self.loss_grid(
            packed[usable, 8:],
            moves[usable],
            avg_factor=average.clamp(min=1).item(),
        )
        return loss

    def _packed_proposals(self, scores: Tensor, boxes: Tensor) -> Tensor:
        """Pack the encoder's proposals, (B, M, 8 + 4 (n + 1))."""
        branch = self.reg_branches[-1]
        if branch.last is None:
            raise RuntimeError(
                f'{type(self).__name__}: the encoder has proposals, but the '
                'last regression branch was not called for them in training '
                'mode: set as_two_stage=True in the detector'
            )
        (features, logits), branch.last = branch.last, None
        logits = self._logits_of_proposals(features, logits, scores)
        moves = self.box_grid(logits.detach())
        return pack(boxes, torch.logit(boxes.detach()) - moves, logits)

    def _logits_of_proposals(
        self, features: Tensor, logits: Tensor, scores: Tensor
    ) -> Tensor:
        """Return the logits of the proposals that have a loss."""
        del features, scores  # every location of the memory has a loss
        return logits


@MODELS.register_module()
class GridDeformableDETRHead(GridDETRHeadMixin, DeformableDETRHead):
    """mmdet's DeformableDETRHead with grid logits; see GridDETRHeadMixin.

    Supports all variants of the detector: plain, box refinement, two-stage.
    """


@MODELS.register_module()
class GridDINOHead(GridDETRHeadMixin, DINOHead):
    """mmdet's DINOHead with grid logits; see GridDETRHeadMixin.

    Denoising queries have the same losses.
    """

    def get_dn_targets(self, *args: Any, **kwargs: Any) -> Any:
        """Return the host's targets, and keep them for ``loss_grid``."""
        self._matched = super().get_dn_targets(*args, **kwargs)
        return self._matched

    def _loss_dn_single(
        self,
        dn_cls_scores: Tensor,
        dn_bbox_preds: Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor, list[Tensor], Tensor]:
        loss_cls, loss_bbox, loss_iou = super()._loss_dn_single(
            dn_cls_scores, dn_bbox_preds[..., :4], *args, **kwargs
        )
        return loss_cls, [loss_bbox, self._grid_loss(dn_bbox_preds)], loss_iou

    @torch.no_grad()
    def _best(self, features: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Return all scores, (B, M, classes), and indices of the best."""
        scores = self.cls_branches[-1](features)
        return scores, scores.amax(dim=-1).topk(number, dim=1).indices

    def _logits_of_proposals(
        self, features: Tensor, logits: Tensor, scores: Tensor
    ) -> Tensor:
        """Return the logits of the proposals that the detector selected."""
        every, index = self._best(features, scores.shape[1])
        again = every.take_along_dim(index[..., None], dim=1)
        if not torch.allclose(again, scores.to(again), atol=1e-3):
            raise RuntimeError(
                'GridDINOHead: the scores of the proposals cannot be '
                'reproduced from their features, so their logits are '
                'unknown: do not put random layers into cls_branches'
            )
        return logits.take_along_dim(index[..., None, None], dim=1)


def logit_space(reference: Tensor) -> Tensor:
    """Return a reference's inverse sigmoid, (..., 4); missing sizes are 0."""
    base: Tensor = inverse_sigmoid(reference)
    missing = 4 - base.shape[-1]
    return nn.functional.pad(base, (0, missing))


def pack(boxes: Tensor, bases: Tensor, logits: Tensor) -> Tensor:
    """Join (..., 4), (..., 4) and (..., 4, n + 1) in the last axis."""
    return torch.cat([boxes, bases, logits.flatten(-2)], dim=-1)


def split_pairs(losses: Mapping[str, Any]) -> dict[str, Tensor]:
    """Split each pair in a ``loss_bbox`` into two named losses."""
    split: dict[str, Tensor] = {}
    for name, value in losses.items():
        if not isinstance(value, list):
            split[name] = value
            continue
        split[name] = value[0]
        split[name.replace('loss_bbox', 'loss_grid')] = value[1]
    return split
