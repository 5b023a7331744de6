"""Network parts of detectors of masks without RoIs: one graph each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn

from taskptq.engine.dense_parts import (
    feature_modules,
    in_order,
    named_outputs,
    pass_on,
)
from taskptq.engine.detr_parts import GivenMask, padding_mask
from taskptq.engine.network_parts import (
    NetworkParts,
    host_class,
    replace_forward,
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

__all__ = [
    'InstanceMaskParts',
    'MaskQueryParts',
    'query_outputs',
    'takes_padding',
]

BOXES, MASKS = 'boxes', 'masks'
# Modules of mask heads that run on features before any box is known: of
# CondInst and BoxInst on all levels, of YOLACT on the first.
BEFORE_BOXES = {'mask_feature_head': None, 'protonet': 0}


@NETWORK_PARTS.register_module(
    name='mmdet.models.detectors.single_stage_instance_seg.'
    'SingleStageInstanceSegmentor'
)
class InstanceMaskParts(NetworkParts):
    """SOLO, CondInst, YOLACT: images -> raw outputs of their heads.

    Without a box head these are all of the mask head's. With one they are the
    box head's, and the maps from which masks of single boxes are made. These
    last products, a few layers as small as their boxes are many, stay the
    host's and float.
    """

    def _check(self) -> None:
        from mmdet.models.dense_heads.base_mask_head import BaseMaskHead
        from mmdet.models.detectors.single_stage_instance_seg import (
            SingleStageInstanceSegmentor,
        )

        self.refuse_overridden(SingleStageInstanceSegmentor, 'predict')
        head = self.model.mask_head
        if host_class(head).predict is not BaseMaskHead.predict:
            raise ValueError(
                f'mask_head ({type(head).__name__}) has a predict() of its '
                f'own: register NetworkParts for {type(self.model).__name__}'
            )

    def _before_boxes(self) -> str:
        """Return the name of the mask head's module on features."""
        head = self.model.mask_head
        for name in BEFORE_BOXES:
            if isinstance(getattr(head, name, None), nn.Module):
                return name
        raise ValueError(
            f'mask_head ({type(head).__name__}) has none of '
            f'{", ".join(BEFORE_BOXES)}: register NetworkParts for '
            f'{type(self.model).__name__}'
        )

    def parts(
        self, data: Mapping[str, Any], *, dynamic: bool = False
    ) -> list[Part]:
        """Return the detector up to its heads' raw outputs."""
        self._check()
        model, head = self.model, self.model.mask_head
        boxes = model.bbox_head if model.with_bbox else None
        modules = feature_modules(model)
        if boxes is None:
            modules['mask_head'] = head
        else:
            name = self._before_boxes()
            modules['bbox_head'] = boxes
            modules[f'mask_head.{name}'] = getattr(head, name)

        def forward(images: Tensor) -> dict[str, Any]:
            feats = model.extract_feat(images)
            if boxes is None:
                return named_outputs(head, head.forward(feats))
            level = BEFORE_BOXES[name]
            return {
                BOXES: named_outputs(boxes, boxes.forward(feats)),
                MASKS: getattr(head, name)(
                    feats if level is None else feats[level]
                ),
            }

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
        """Compute the raw outputs; masks of boxes and NMS stay the host's."""
        self._check()
        self.check_names(runs, [MAIN])
        model, head = self.model, self.model.mask_head
        run = runs[MAIN]
        if not model.with_bbox:
            model.extract_feat = pass_on
            replace_forward(head, lambda images: in_order(head, run(images)))
            return
        raw: dict[str, Tensor] = {}

        def extract_feat(images: Tensor) -> tuple[Tensor, ...]:
            raw.clear()
            raw.update(run(images))
            # The host asks the first level how many images there are.
            return (images,)

        model.extract_feat = extract_feat
        replace_forward(
            model.bbox_head,
            lambda feats: in_order(model.bbox_head, _group(raw, BOXES)),
        )
        replace_forward(
            getattr(head, self._before_boxes()),
            lambda feats: nested(_group(raw, MASKS)),
        )


def _group(outputs: Mapping[str, Tensor], group: str) -> dict[str, Tensor]:
    """Return the outputs of a group, named within it; ``''`` if it is one."""
    return {
        name.removeprefix(group).removeprefix('.'): tensor
        for name, tensor in outputs.items()
        if name == group or name.startswith(f'{group}.')
    }


@NETWORK_PARTS.register_module(
    name='mmdet.models.detectors.maskformer.MaskFormer'
)
class MaskQueryParts(NetworkParts):
    """MaskFormer and Mask2Former: images -> classes and masks of queries.

    The last decoder layer's, at the size of the features; enlarging masks
    and merging queries stay the host's.
    """

    def _check(self) -> None:
        from mmdet.models.detectors import MaskFormer

        self.refuse_overridden(MaskFormer, 'predict')

    def parts(
        self, data: Mapping[str, Any], *, dynamic: bool = False
    ) -> list[Part]:
        """Return the network up to the last decoder layer's outputs."""
        self._check()
        padded = takes_padding(self.model.panoptic_head, owner=self.model)
        inputs = {'images': data['inputs']}
        axes = {'images': image_axes(dynamic=dynamic)}
        if padded:
            inputs['padding'] = padding_mask(
                data['inputs'], data['data_samples']
            )
            axes['padding'] = image_axes(dynamic=dynamic, spatial=1)
        modules = feature_modules(self.model)
        modules['panoptic_head'] = self.model.panoptic_head
        return [
            make_part(
                MAIN,
                self._raw_masks,
                modules=modules,
                inputs=inputs,
                axes=axes,
            )
        ]

    def _raw_masks(
        self, images: Tensor, mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Run the model; return classes and masks of its queries."""
        feats = self.model.extract_feat(images)
        return query_outputs(
            self.model.panoptic_head, feats, images, mask=mask
        )

    def install(self, runs: Mapping[str, Run]) -> None:
        """Compute the queries' outputs in the runtime."""
        self._check()
        self.check_names(runs, [MAIN])
        padded = takes_padding(self.model.panoptic_head, owner=self.model)

        def forward(
            images: Tensor, samples: Sequence[Any]
        ) -> tuple[list[Tensor], list[Tensor]]:
            given = [images]
            if padded:
                given.append(padding_mask(images, samples))
            found = runs[MAIN](*given)
            return [found['cls_scores']], [found['mask_preds']]

        self.model.extract_feat = pass_on
        replace_forward(self.model.panoptic_head, forward)


def takes_padding(head: nn.Module, *, owner: nn.Module) -> bool:
    """Return whether a head of queries reads where a batch is padding.

    Args:
        head: MaskFormer's or Mask2Former's.
        owner: Model, for errors.

    Raises:
        ValueError: If the head's class has a forward of its own.
    """
    from mmdet.models.dense_heads import Mask2FormerHead, MaskFormerHead

    known = host_class(head)
    if known.forward is Mask2FormerHead.forward:
        return False
    if known.forward is MaskFormerHead.forward:
        return True
    raise ValueError(
        f'{known.__name__} has a forward() of its own: register NetworkParts '
        f'for {type(owner).__name__}'
    )


def query_outputs(
    head: nn.Module, feats: Any, images: Tensor, *, mask: Tensor | None
) -> dict[str, Tensor]:
    """Return classes and masks of the queries of a head's last layer.

    Args:
        head: MaskFormer's or Mask2Former's.
        feats: Features of the images.
        images: (N, 3, H, W).
        mask: (N, H, W), 1 where they are padding; None if no one asks.

    Returns:
        ``cls_scores`` (N, Q, C) and ``mask_preds`` (N, Q, h, w).
    """
    # The host fills its mask by these sizes, which is ignored.
    meta = {
        'batch_input_shape': tuple(images.shape[-2:]),
        'img_shape': (0, 0),
    }
    samples = [SimpleNamespace(metainfo=meta, **meta)] * len(images)
    given = nullcontext() if mask is None else GivenMask(mask)
    with given:
        classes, masks = head.forward(feats, samples)
    return {'cls_scores': classes[-1], 'mask_preds': masks[-1]}
