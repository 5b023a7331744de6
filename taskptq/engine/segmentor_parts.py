"""Network part of segmentors: images, or crops of them -> logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.engine.dense_parts import feature_modules, pass_on
from taskptq.engine.detr_parts import attribute
from taskptq.engine.mask_parts import query_outputs, takes_padding
from taskptq.engine.network_parts import NetworkParts, replace_forward
from taskptq.engine.onnx_decode import class_decoding
from taskptq.engine.raw_outputs import MAIN, Part, Run, image_axes, make_part
from taskptq.modules.memory import is_exporting
from taskptq.registry import NETWORK_PARTS

__all__ = ['SegmentorParts']

LOGITS = 'seg_logits'


@NETWORK_PARTS.register_module(
    name='mmseg.models.segmentors.encoder_decoder.EncoderDecoder'
)
class SegmentorParts(NetworkParts):
    """Segmentors: images (or crops of a sliding window) -> logits.

    The logits are what the last head hands to its ``predict_by_feat``. Of
    heads that classify masks (MaskFormer, Mask2Former) they are the classes
    and masks of the queries.
    """

    def _heads(self) -> list[nn.Module]:
        from mmseg.models.segmentors import (
            CascadeEncoderDecoder,
            EncoderDecoder,
        )

        base = EncoderDecoder
        if isinstance(self.model, CascadeEncoderDecoder):
            base = CascadeEncoderDecoder
        self.refuse_overridden(base, 'encode_decode', 'predict')
        head = self.model.decode_head
        return list(head) if isinstance(head, nn.ModuleList) else [head]

    def parts(
        self, data: Mapping[str, Any], *, dynamic: bool = False
    ) -> list[Part]:
        """Return the segmentor up to its logits, before they are resized.

        In ``slide`` mode the network sees crops, so that is its size.
        """
        heads, model = self._heads(), self.model
        forward = self._logits
        if classifies_masks(heads[-1]):
            # Refuses heads whose inputs are not known.
            takes_padding(heads[-1], owner=model)
            forward = self._queries
        images = data['inputs']
        crop = (model.test_cfg or {}).get('crop_size')
        if crop is not None and (model.test_cfg or {}).get('mode') == 'slide':
            images = images[..., : crop[0], : crop[1]]
        return [
            make_part(
                MAIN,
                forward,
                modules={
                    **feature_modules(model),
                    'decode_head': model.decode_head,
                },
                inputs={'images': images},
                axes={'images': image_axes(dynamic=dynamic)},
            )
        ]

    def _logits(self, images: Tensor) -> dict[str, Any]:
        """Run the model; return what its last head would resize."""
        heads, model = self._heads(), self.model
        found: list[Tensor] = []

        def keep(logits: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            found.append(logits)
            return logits

        feats = model.extract_feat(images)
        given: list[Any] = [feats]
        if len(heads) > 1:
            logits = heads[0].forward(feats)
            for head in heads[1:-1]:
                logits = head.forward(feats, logits)
            given.append(logits)
        # A list as long as the batch would fix it in a graph of torch.export.
        count = 1 if is_exporting() else len(images)
        metas = [{'img_shape': tuple(images.shape[-2:])}] * count
        with attribute(heads[-1], 'predict_by_feat', keep):
            heads[-1].predict(*given, metas, model.test_cfg)
        if not found:
            raise ValueError(
                f'decode_head ({type(heads[-1]).__name__}) does not hand its '
                'logits to predict_by_feat(): register NetworkParts for '
                f'{type(model).__name__}'
            )
        return {LOGITS: found[0]}

    def _queries(self, images: Tensor) -> dict[str, Any]:
        """Run the model; return classes and masks of its queries."""
        # Images are not padded here, or the head is not told.
        mask = torch.zeros_like(images[:, 0])
        feats = self.model.extract_feat(images)
        return query_outputs(self.model.decode_head, feats, images, mask=mask)

    def install(self, runs: Mapping[str, Run]) -> None:
        """Compute the logits; windows and resizing stay the host's."""
        heads = self._heads()
        self.check_names(runs, [MAIN])
        self.model.extract_feat = pass_on
        last = heads[-1]
        if classifies_masks(last):
            replace_forward(last, _run_queries(runs[MAIN]))
            return
        for head in heads[:-1]:
            replace_forward(head, lambda images, *logits: images)

        def predict(images: Tensor, *rest: Any, **kwargs: Any) -> Any:
            *_, metas, _ = rest
            logits = runs[MAIN](images)[LOGITS]
            return last.predict_by_feat(logits, metas, **kwargs)

        last.predict = predict

    def decoding(self) -> dict[str, Any] | None:
        """Return how the logits are resized."""
        if (self.model.test_cfg or {}).get('mode', 'whole') != 'whole':
            return None
        return class_decoding(self.model)


def classifies_masks(head: nn.Module) -> bool:
    """Whether a head is mmdet's MaskFormer or Mask2Former, as mmseg has it."""
    try:
        from mmdet.models.dense_heads import MaskFormerHead
    except ImportError:
        return False
    return isinstance(head, MaskFormerHead)


def _run_queries(run: Run) -> Any:
    def forward(
        images: Tensor, samples: Sequence[Any]
    ) -> tuple[list[Tensor], list[Tensor]]:
        found = run(images)
        return [found['cls_scores']], [found['mask_preds']]

    return forward
