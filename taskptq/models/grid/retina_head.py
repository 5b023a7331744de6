"""RetinaNet's head that localizes over a grid."""

from __future__ import annotations

from mmdet.models.dense_heads import RetinaHead

from taskptq.models.grid.anchor_head import GridAnchorHeadMixin
from taskptq.models.grid.refinement import RefinementMixin
from taskptq.registry import MODELS

__all__ = ['GridRetinaHead']


@MODELS.register_module()
class GridRetinaHead(RefinementMixin, GridAnchorHeadMixin, RetinaHead):
    """mmdet's RetinaHead with n + 1 logits for each delta of each anchor.

    By default alpha=2, beta=1, n=10. With 9 anchors per location and 256
    channels, the regression layer (a 3x3 conv) then costs as much as one and
    a half layers of its tower; with n=4 or n=5 less than one.
    """

    regression_layers = ('retina_reg',)
