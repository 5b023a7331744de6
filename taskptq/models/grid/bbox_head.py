"""Box head of Faster and Cascade R-CNN that localizes over a grid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from mmdet.models.roi_heads.bbox_heads import Shared2FCBBoxHead
from mmdet.registry import MODELS as MMDET_MODELS

from taskptq.models.grid.head import GridHeadMixin
from taskptq.registry import MODELS

__all__ = ['GridShared2FCBBoxHead']


@MODELS.register_module()
class GridShared2FCBBoxHead(GridHeadMixin, Shared2FCBBoxHead):
    """mmdet's Shared2FCBBoxHead with n + 1 logits for each delta.

    Logits of a region are (C 4 (n + 1),) with the channel index
    (class 4 + coordinate) (n + 1) + point; C is 1 with
    ``reg_class_agnostic``, as in all stages of Cascade R-CNN.

    By default alpha=5, beta=1, n=5 as in UGS. The unit is the coder's
    encoding: divided by its ``target_stds``, the targets of all stages of
    Cascade R-CNN have the same spread, so one alpha fits all three.

    Args:
        *args: Arguments of the host's head.
        grid: Arguments of BoxGrid, in units of the coder's encoding.
        **kwargs: Arguments of the host's head.

    Raises:
        ValueError: If the head has no regression, or a loss that doesn't
            accept logits.
    """

    default_grid: ClassVar[Mapping[str, Any]] = {
        'alpha': 5.0,
        'beta': 1.0,
        'num_intervals': 5,
    }
    regression_layers = ('fc_reg',)

    def __init__(
        self,
        *args: Any,
        grid: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if not self.with_reg:
            raise ValueError(
                'GridShared2FCBBoxHead: with_reg=False leaves nothing for a '
                'grid: use mmdet.Shared2FCBBoxHead'
            )
        self.use_grid(grid)
        num_boxes = 1 if self.reg_class_agnostic else self.num_classes
        self.fc_reg = MMDET_MODELS.build(
            {
                **self.reg_predictor_cfg,
                'in_features': self.reg_last_dim,
                'out_features': num_boxes * self.bbox_coder.encode_size,
            }
        )
