"""Network part of lane detectors: images -> the head's named tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from taskptq.engine.network_parts import NetworkParts, replace_forward
from taskptq.engine.raw_outputs import (
    MAIN,
    Part,
    Run,
    image_axes,
    make_part,
)
from taskptq.registry import NETWORK_PARTS

__all__ = ['LaneParts']


@NETWORK_PARTS.register_module(
    name='lane_detection.models.detector.LaneDetector'
)
class LaneParts(NetworkParts):
    """Lane detectors up to the tensors that ``LaneHead.decode`` takes."""

    def parts(
        self, data: Mapping[str, Any], *, dynamic: bool = False
    ) -> list[Part]:
        """Return backbone, neck and head."""
        model = self.model

        def forward(images: Tensor) -> dict[str, Tensor]:
            return dict(model.head.forward(model.extract_feat(images)))

        modules = {'backbone': model.backbone, 'head': model.head}
        if model.neck is not None:
            modules['neck'] = model.neck
        return [
            make_part(
                MAIN,
                forward,
                modules=modules,
                inputs={'images': data['inputs']},
                axes={'images': image_axes(dynamic=dynamic)},
            )
        ]

    def install(self, runs: Mapping[str, Run]) -> None:
        """Compute the tensors; drawing lanes from them stays the host's."""
        self.check_names(runs, [MAIN])
        self.model.extract_feat = lambda images: images
        replace_forward(
            self.model.head, lambda images: dict(runs[MAIN](images))
        )
