"""RPN that localizes over a grid."""

from __future__ import annotations

from mmdet.models.dense_heads import RPNHead

from taskptq.models.grid.anchor_head import GridAnchorHeadMixin
from taskptq.models.grid.refinement import RefinementMixin
from taskptq.registry import MODELS

__all__ = ['GridRPNHead']


@MODELS.register_module()
class GridRPNHead(RefinementMixin, GridAnchorHeadMixin, RPNHead):
    """mmdet's RPNHead with n + 1 logits for each delta of each anchor.

    By default alpha=2, beta=1, n=10: deltas up to two anchor sizes.
    """

    regression_layers = ('rpn_reg',)
