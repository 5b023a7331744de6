"""Network parts of one-stage detectors: one graph."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from taskptq.engine.network_parts import (
    NetworkParts,
    replace_forward,
)
from taskptq.engine.onnx_decode import (
    anchor_decoding,
    point_decoding,
)
from taskptq.engine.raw_outputs import (
    MAIN,
    Part,
    Run,
    image_axes,
    make_part,
    nested,
)
from taskptq.registry import NETWORK_PARTS

__all__ = ['DenseDetectorParts', 'argument_names']


def argument_names(head: nn.Module, outputs: Sequence[Any]) -> list[str]:
    """Return what a head's ``predict_by_feat`` calls its raw outputs."""
    known = list(inspect.signature(head.predict_by_feat).parameters)
    if len(known) < len(outputs):
        return [f'output{i}' for i in range(len(outputs))]
    return known[: len(outputs)]


def named_outputs(head: nn.Module, outputs: Any) -> dict[str, Any]:
    """Name a head's raw outputs as its ``predict_by_feat`` does."""
    if not isinstance(outputs, tuple):
        outputs = (outputs,)
    names = argument_names(head, outputs)
    return dict(zip(names, outputs, strict=True))


def in_order(
    head: nn.Module, outputs: Mapping[str, Tensor]
) -> tuple[Any, ...]:
    """Return raw outputs as the head's forward did; None where it was."""
    found = nested(outputs)
    known = list(inspect.signature(head.predict_by_feat).parameters)
    if not set(found) <= set(known):
        return tuple(found.values())
    last = max(known.index(name) for name in found)
    return tuple(found.get(name) for name in known[: last + 1])


def pass_on(value: Any) -> Any:
    """Return what is given: features in the place of an extractor's."""
    return value


def feature_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return backbone and, if there is one, neck, by name."""
    names = ('backbone', 'neck')
    return {
        name: getattr(model, name)
        for name in names
        if isinstance(getattr(model, name, None), nn.Module)
    }


@NETWORK_PARTS.register_module(
    name='mmdet.models.detectors.single_stage.SingleStageDetector'
)
class DenseDetectorParts(NetworkParts):
    """One-stage detectors: images -> raw outputs of ``bbox_head``."""

    def _check(self) -> None:
        from mmdet.models.detectors import SingleStageDetector

        self.refuse_overridden(SingleStageDetector, 'predict')

    def parts(
        self, data: Mapping[str, Any], *, dynamic: bool = False
    ) -> list[Part]:
        """Return the detector up to its head's raw outputs.

        Outputs are named ``'<argument of predict_by_feat>.<level>'``.
        """
        self._check()
        model, head = self.model, self.model.bbox_head

        def forward(images: Tensor) -> dict[str, Any]:
            return named_outputs(
                head, head.forward(model.extract_feat(images))
            )

        return [
            make_part(
                MAIN,
                forward,
                modules={**feature_modules(model), 'bbox_head': head},
                inputs={'images': data['inputs']},
                axes={'images': image_axes(dynamic=dynamic)},
            )
        ]

    def install(self, runs: Mapping[str, Run]) -> None:
        """Compute the raw outputs; decoding and NMS stay the host's."""
        self._check()
        self.check_names(runs, [MAIN])
        head = self.model.bbox_head
        self.model.extract_feat = pass_on
        replace_forward(
            head, lambda images: in_order(head, runs[MAIN](images))
        )

    def decoding(self) -> dict[str, Any] | None:
        """Return the settings of anchors or points, if plain code has them."""
        head = self.model.bbox_head
        return anchor_decoding(head) or point_decoding(head)
