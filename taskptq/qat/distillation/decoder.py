"""What a DETR's decoder computed, layer by layer, and what is true."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.engine.detr_adapters import decoder_taps, matching_queries

__all__ = ['HEAD', 'DecoderView', 'cross_attention_taps', 'ground_truth']

# Name of the head among recorded modules; the others are numbers of layers.
HEAD = 'head'


def cross_attention_taps(model: nn.Module) -> dict[int, nn.Module]:
    """Return the module that outputs the features of each decoder layer.

    Args:
        model: Prepared DETR.

    Returns:
        Layer index -> module.

    Raises:
        ValueError: If the model has no such decoder.
    """
    taps = {}
    if hasattr(model, 'decoder') and hasattr(model, 'num_queries'):
        taps = {
            int(name.partition('.')[2]): tap
            for name, tap in decoder_taps(model).items()
            if name.startswith('attended.')
        }
    if not taps:
        raise ValueError(
            f'distillation needs a DETR whose cross-attention has a '
            f'quantized counterpart, and {type(model).__name__} has none: '
            'check qconfig.keep_float, or remove distillation'
        )
    return taps


@dataclass(frozen=True, kw_only=True)
class DecoderView:
    """Outputs of a detector's decoder, recorded during one forward.

    Args:
        attended: Co-attended features of each layer, (B, N, E).
        boxes: Boxes of each layer, (B, N, 4), normalized cx, cy, w, h.
        classes: Logits of each layer, (B, N, C).
    """

    attended: dict[int, Tensor]
    boxes: dict[int, Tensor]
    classes: dict[int, Tensor]

    @classmethod
    def of(
        cls, model: nn.Module, found: Mapping[Any, Any], head: Sequence[Tensor]
    ) -> DecoderView:
        """Build from a recording, without denoising queries.

        Args:
            model: Detector that ran.
            found: Features by layer, (B, denoising + N, E).
            head: Logits and boxes of the last L layers,
                (L, B, denoising + N, C or 4).
        """
        count = int(model.num_queries)
        features = {key: out for key, out in found.items() if key != HEAD}
        classes, boxes = head[0], head[1]
        first = max(features) + 1 - len(boxes)
        return cls(
            attended={
                layer: matching_queries(feature, num_queries=count)
                for layer, feature in features.items()
            },
            boxes={
                layer: matching_queries(box, num_queries=count)
                for layer, box in enumerate(boxes, start=first)
            },
            classes={
                layer: matching_queries(logits, num_queries=count)
                for layer, logits in enumerate(classes, start=first)
            },
        )


def ground_truth(samples: Sequence[Any], *, like: Tensor) -> list[Tensor]:
    """Return each image's boxes in the format of a DETR head.

    Args:
        samples: mmdet's data samples; boxes as corners in pixels.
        like: Tensor whose device and dtype the boxes get.

    Returns:
        (G, 4) for each image: cx, cy, w, h relative to the image size.
    """
    found = []
    for sample in samples:
        height, width = sample.metainfo['img_shape'][:2]
        boxes = sample.gt_instances.bboxes
        corners = getattr(boxes, 'tensor', boxes).to(like)
        corners = corners / corners.new_tensor([width, height] * 2)
        low, high = corners[:, :2], corners[:, 2:]
        found.append(torch.cat([(low + high) / 2, high - low], dim=1))
    return found
