"""Grid heads over anchors: common parts of RPN and RetinaNet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from taskptq.models.grid.head import GridHeadMixin

__all__ = ['GridAnchorHeadMixin']


class GridAnchorHeadMixin(GridHeadMixin):
    """For heads that size their regression layer by the coder's encoding.

    Logits of a level are (N, P 4 (n + 1), H, W) with the channel index
    (prior 4 + coordinate) (n + 1) + point.

    Args:
        *args: Arguments of the host's head.
        grid: Arguments of BoxGrid, in units of the coder's encoding.
        **kwargs: Arguments of the host's head.
    """

    # From UGS, for deltas in anchor sizes.
    default_grid: ClassVar[Mapping[str, Any]] = {
        'alpha': 2.0,
        'beta': 1.0,
        'num_intervals': 10,
    }

    def __init__(
        self,
        *args: Any,
        grid: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        # The host makes its layers in __init__.
        self.grid_settings = grid
        super().__init__(*args, **kwargs)

    def _init_layers(self) -> None:
        self.use_grid(self.grid_settings)
        super()._init_layers()
