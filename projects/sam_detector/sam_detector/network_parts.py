"""Network parts of a SAM detector: encoder, decoder, and the detector's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from taskptq.engine.network_parts import (
    NetworkParts,
    parts_of,
    replace_forward,
)
from taskptq.engine.raw_outputs import MAIN, Part, Run, make_part
from taskptq.registry import NETWORK_PARTS

from .prompts import Prompts

__all__ = ['SAMParts']

DECODER, DETECTOR = 'decoder', 'detector'
# Labels of points: a box is its two corners, padding is no point at all.
PADDING, CORNERS = -1, (2, 3)


class ExpandedImage(TorchFunctionMode):
    """Repeat one image for all prompts by ``expand``.

    A trace of ``repeat_interleave`` would freeze the number of prompts.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Replace repetitions of a batch of one; pass on other calls."""
        if func is torch.repeat_interleave and len(args[0]) == 1:
            return args[0].expand(args[1], -1, -1, -1)
        return func(*args, **(kwargs or {}))


def points_of(prompts: Prompts) -> tuple[Tensor, Tensor]:
    """Return boxes and points as points alone.

    Args:
        prompts: P prompts.

    Returns:
        Coordinates (P, N, 2) and labels (P, N): -1 for padding, 0 outside, 1
        inside, 2 and 3 the corners of a box.
    """
    coords, labels = [], []
    if prompts.points is not None:
        coords.append(prompts.points)
        labels.append(prompts.labels.to(prompts.points))
        if prompts.boxes is None:
            coords.append(torch.zeros_like(prompts.points[:, :1]))
            labels.append(torch.full_like(labels[0][:, :1], PADDING))
    if prompts.boxes is not None:
        coords.append(prompts.boxes.reshape(-1, 2, 2))
        corners = prompts.boxes.new_tensor(CORNERS)
        labels.append(corners.expand(len(prompts), -1))
    return torch.cat(coords, dim=1), torch.cat(labels, dim=1)


@NETWORK_PARTS.register_module(name='sam_detector.detector.SAMDetector')
class SAMParts(NetworkParts):
    """Main part: the image encoder, on views; then ``decoder``.

    The decoder holds the prompt encoder. Choosing views and prompts and
    pasting masks stay the host's. A detector's own parts are named
    ``detector`` and ``detector.<part>``.
    """

    def image_size(self, data: Mapping[str, Any]) -> tuple[int, int]:
        """Return the size of a view, which the model fixes."""
        side = self.model.sam.image_size
        return side, side

    def parts(
        self, data: Mapping[str, Any], *, dynamic: bool = False
    ) -> list[Part]:
        """Return encoder and decoder, and the parts of the detector.

        With ``dynamic`` only the detector's images have a free size.
        """
        sam = self.model.sam
        views = torch.cat(list(data['inputs']['sam']))[:2]
        if len(views) < 2:
            views = views.repeat(2, 1, 1, 1)
        encoder = make_part(
            MAIN,
            lambda images: {'embeddings': sam.encode(images)},
            modules={'sam.image_encoder': sam.image_encoder},
            inputs={'images': views},
            axes={'images': {0: 'batch'}},
        )
        found = [encoder, self._decoder(views)]
        if self.model.detector is not None and 'img' in data['inputs']:
            found += [
                replace(part, name=detector_name(part.name))
                for part in parts_of(self.model.detector).parts(
                    {**data, 'inputs': data['inputs']['img']}, dynamic=dynamic
                )
            ]
        return found

    def _decoder(self, views: Tensor) -> Part:
        """Return prompt encoder and mask decoder as a part."""
        sam = self.model.sam
        side, cells = sam.image_size, sam.size.mask_size
        with torch.no_grad():
            embedding = sam.encode(views[:1])
        boxes = side * torch.tensor(
            [[0.2, 0.3, 0.5, 0.6], [0.1, 0.1, 0.9, 0.8]]
        )
        coords, labels = points_of(Prompts(boxes=boxes))
        inputs = {'embedding': embedding, 'coords': coords, 'labels': labels}
        axes = {
            'coords': {0: 'prompts', 1: 'points'},
            'labels': {0: 'prompts', 1: 'points'},
        }
        if sam.box_mask_prompt:
            drawn = Prompts(boxes=boxes)
            inputs['masks'] = drawn.box_masks(image_size=side, cells=cells)
            inputs['has_mask'] = torch.ones(len(boxes))
            axes |= {'masks': {0: 'prompts'}, 'has_mask': {0: 'prompts'}}
        return make_part(
            DECODER,
            self._decode,
            modules={
                'sam.prompt_encoder': sam.prompt_encoder,
                'sam.mask_decoder': sam.mask_decoder,
            },
            inputs=inputs,
            axes=axes,
        )

    def _decode(
        self,
        embedding: Tensor,
        coords: Tensor,
        labels: Tensor,
        masks: Tensor | None = None,
        has_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Return the logits of all masks and their predicted IoUs.

        Args:
            embedding: (1, C, S / 16, S / 16).
            coords: (P, N, 2) in pixels of the view.
            labels: (P, N), see :func:`points_of`.
            masks: (P, 1, S / 4, S / 4), logits of mask prompts.
            has_mask: (P,), 1 where the prompt has a mask, else 0.
        """
        sam = self.model.sam
        encoder = sam.prompt_encoder
        # A pixel's coordinates are those of its center.
        coded = encoder.pe_layer._pe_encoding((coords + 0.5) / sam.image_size)
        kinds = labels[..., None]
        sparse = torch.where(
            kinds == PADDING, encoder.not_a_point_embed.weight, coded
        )
        for kind, embed in enumerate(encoder.point_embeddings):
            sparse = sparse + (kinds == kind).to(coded) * embed.weight
        dense = encoder.no_mask_embed.weight.reshape(1, -1, 1, 1)
        if masks is not None:
            given = has_mask.reshape(-1, 1, 1, 1)
            dense = given * encoder._embed_masks(masks) + (1 - given) * dense
        with ExpandedImage():
            logits, iou = sam.mask_decoder.predict_masks(
                image_embeddings=embedding,
                image_pe=encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
            )
        return {'logits': logits, 'iou': iou}

    def install(self, runs: Mapping[str, Run]) -> None:
        """Compute embeddings and masks, and the detector's network."""
        sam, detector = self.model.sam, self.model.detector
        inner = {
            MAIN if name == DETECTOR else name.removeprefix(f'{DETECTOR}.'): r
            for name, r in runs.items()
            if name.partition('.')[0] == DETECTOR
        }
        own = {n: r for n, r in runs.items() if n in (MAIN, DECODER)}
        self.check_names(
            {n: r for n, r in runs.items() if detector is None or n in own},
            [MAIN, DECODER],
        )
        if detector is not None:
            parts_of(detector).install(inner)
        replace_forward(
            sam.image_encoder, lambda images: runs[MAIN](images)['embeddings']
        )

        def decode(
            embedding: Tensor, prompts: Prompts, multimask_output: bool
        ) -> tuple[Tensor, Tensor]:
            given = [embedding, *points_of(prompts)]
            if sam.box_mask_prompt:
                given += masks_of(prompts, sam)
            found = runs[DECODER](*given)
            chosen = slice(1, None) if multimask_output else slice(0, 1)
            return found['logits'][:, chosen], found['iou'][:, chosen]

        sam._decode = decode


def detector_name(part: str) -> str:
    """Return the name of a detector's part within the whole model."""
    return DETECTOR if part == MAIN else f'{DETECTOR}.{part}'


def masks_of(prompts: Prompts, sam: Any) -> list[Tensor]:
    """Return each prompt's box as a mask, and whether it has one."""
    cells, device = sam.size.mask_size, sam.pixel_mean.device
    if prompts.boxes is None:
        empty = torch.zeros(len(prompts), 1, cells, cells, device=device)
        return [empty, torch.zeros(len(prompts), device=device)]
    drawn = prompts.box_masks(image_size=sam.image_size, cells=cells)
    return [drawn, torch.ones(len(prompts), device=device)]
