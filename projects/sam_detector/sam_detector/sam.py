"""Segment Anything as one module of an mm model.

The three parts are segment_anything's own classes under their own names, so
the keys of an official file are the keys of this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    TwoWayTransformer,
)
from torch import Tensor, nn

from taskptq.engine.checkpoint_file import local_file, read_checkpoint
from taskptq.export.schema import is_quantized

from .loading import load_exactly
from .prompts import Prompts

__all__ = ['SAM_SIZES', 'PromptedSAM', 'SAMSize', 'read_sam_file']

# Statistics of the official model; channels are RGB.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True, kw_only=True)
class SAMSize:
    """Architecture of one size.

    Args:
        embed_dim: Channels of the image encoder.
        depth: Blocks of the image encoder.
        num_heads: Attention heads of the image encoder.
        global_blocks: Indices of the blocks with global attention.
        image_size: Side of the input in pixels.
        window_size: Side of an attention window in tokens.
        prompt_dim: Channels of embedding, prompts and mask decoder.
        decoder_heads: Heads of the mask decoder.
        decoder_mlp_dim: Hidden channels of the decoder's MLPs.
        iou_hidden_dim: Hidden channels of the decoder's IoU head.
        patch_size: Side of an image patch in pixels.

    Raises:
        ValueError: If a number is not positive, or two do not fit together.
    """

    embed_dim: int
    depth: int
    num_heads: int
    global_blocks: tuple[int, ...]
    image_size: int = 1024
    window_size: int = 14
    prompt_dim: int = 256
    decoder_heads: int = 8
    decoder_mlp_dim: int = 2048
    iou_hidden_dim: int = 256
    patch_size: int = 16

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            # In segment_anything, 0 means no windows.
            least = 0 if field.name == 'window_size' else 1
            if isinstance(value, int) and value < least:
                raise ValueError(
                    f'{field.name}={value} of SAM must be at least {least}'
                )
        for whole, part in (
            ('image_size', 'patch_size'),
            ('embed_dim', 'num_heads'),
        ):
            if getattr(self, whole) % getattr(self, part) != 0:
                raise ValueError(
                    f'{whole}={getattr(self, whole)} of SAM must be a '
                    f'multiple of {part}={getattr(self, part)}'
                )
        if any(not 0 <= block < self.depth for block in self.global_blocks):
            raise ValueError(
                f'global_blocks={tuple(self.global_blocks)} of SAM must be '
                f'indices of its depth={self.depth} blocks: give both'
            )

    @property
    def mask_size(self) -> int:
        """Side of a low-resolution mask: four cells for each token."""
        return 4 * (self.image_size // self.patch_size)


SAM_SIZES: dict[str, SAMSize] = {
    'vit_b': SAMSize(
        embed_dim=768, depth=12, num_heads=12, global_blocks=(2, 5, 8, 11)
    ),
    'vit_l': SAMSize(
        embed_dim=1024, depth=24, num_heads=16, global_blocks=(5, 11, 17, 23)
    ),
    'vit_h': SAMSize(
        embed_dim=1280, depth=32, num_heads=16, global_blocks=(7, 15, 23, 31)
    ),
    # Ours, trained from scratch on two cores; windows of 8 x 8 tokens and
    # two global blocks keep both kinds of attention.
    'tiny': SAMSize(
        embed_dim=128,
        depth=6,
        num_heads=4,
        global_blocks=(2, 5),
        image_size=256,
        window_size=8,
        prompt_dim=128,
        decoder_heads=4,
        decoder_mlp_dim=256,
        iou_hidden_dim=128,
    ),
}


def build_encoder(size: SAMSize) -> ImageEncoderViT:
    """Build the image encoder of a size."""
    return ImageEncoderViT(
        img_size=size.image_size,
        patch_size=size.patch_size,
        embed_dim=size.embed_dim,
        depth=size.depth,
        num_heads=size.num_heads,
        out_chans=size.prompt_dim,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=size.window_size,
        global_attn_indexes=size.global_blocks,
    )


def build_prompt_encoder(size: SAMSize) -> PromptEncoder:
    """Build the prompt encoder of a size."""
    cells = size.image_size // size.patch_size
    return PromptEncoder(
        embed_dim=size.prompt_dim,
        image_embedding_size=(cells, cells),
        input_image_size=(size.image_size, size.image_size),
        mask_in_chans=16,
    )


def build_mask_decoder(size: SAMSize) -> MaskDecoder:
    """Build the mask decoder of a size."""
    return MaskDecoder(
        transformer_dim=size.prompt_dim,
        transformer=TwoWayTransformer(
            depth=2,
            embedding_dim=size.prompt_dim,
            num_heads=size.decoder_heads,
            mlp_dim=size.decoder_mlp_dim,
        ),
        iou_head_hidden_dim=size.iou_hidden_dim,
    )


def read_sam_file(path: str | Path) -> dict[str, Tensor]:
    """Read the weights of SAM from an official file or an mm checkpoint.

    Args:
        path: File of plain tensors, or an mm checkpoint whose ``state_dict``
            has SAM's keys, with or without the prefix ``sam.``; or its URL.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file cannot be read, is quantized, or has no
            tensor of an image encoder.
    """
    content = read_checkpoint(local_file(path))
    if is_quantized(content):
        raise ValueError(
            f'{path} is quantized already: give the float checkpoint of SAM'
        )
    state = content.get('state_dict', content)
    if not isinstance(state, Mapping):
        state = {}
    if any(key.startswith('sam.') for key in state):
        state = {
            key.removeprefix('sam.'): value
            for key, value in state.items()
            if key.startswith('sam.')
        }
    if not any(key.startswith('image_encoder.') for key in state):
        raise ValueError(
            f'{path} holds no SAM: none of its {len(state)} keys start with '
            '"image_encoder."; give an official SAM file or a checkpoint of '
            'a SAMDetector'
        )
    return dict(state)


@MODELS.register_module()
class PromptedSAM(BaseModule):
    """Image encoder, prompt encoder and mask decoder of Segment Anything.

    Kirillov et al., Segment Anything, ICCV 2023.

    Args:
        size: A key of ``SAM_SIZES``.
        checkpoint: File to load, see :func:`read_sam_file`.
        prompts_per_batch: Maximum number of prompts per batch of the mask
            decoder. Each takes about 40 MB for the official sizes (4096
            image tokens), 2 MB for ``tiny``.
        box_mask_prompt: Also prompt with each box as a filled low-resolution
            mask. The official weights were not trained this way.
        init_cfg: See mmengine's BaseModule.
        **overrides: Fields of :class:`SAMSize`.

    Raises:
        ValueError: If the size or an override is unknown, or a number is
            invalid.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        size: str = 'vit_b',
        *,
        checkpoint: str | None = None,
        prompts_per_batch: int = 64,
        box_mask_prompt: bool = False,
        init_cfg: dict[str, Any] | None = None,
        **overrides: Any,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if size not in SAM_SIZES:
            raise ValueError(
                f'size={size!r} is unknown: choose one of '
                f'{", ".join(SAM_SIZES)}'
            )
        if prompts_per_batch < 1:
            raise ValueError(
                f'prompts_per_batch={prompts_per_batch} must be at least 1'
            )
        known = [field.name for field in fields(SAMSize)]
        unknown = sorted(set(overrides) - set(known))
        if unknown:
            raise ValueError(
                f'{unknown[0]}={overrides[unknown[0]]!r} is not a setting of '
                f'SAM: choose from {", ".join(known)}'
            )
        self.size = replace(SAM_SIZES[size], **overrides)
        self.image_size = self.size.image_size
        self.prompts_per_batch = prompts_per_batch
        self.box_mask_prompt = box_mask_prompt
        self.image_encoder = build_encoder(self.size)
        self.prompt_encoder = build_prompt_encoder(self.size)
        self.mask_decoder = build_mask_decoder(self.size)
        for name, value in (
            ('pixel_mean', PIXEL_MEAN),
            ('pixel_std', PIXEL_STD),
        ):
            self.register_buffer(
                name, torch.tensor(value).view(3, 1, 1), persistent=False
            )
        self._init_tables()
        if checkpoint is not None:
            self.load(checkpoint)

    def _init_tables(self) -> None:
        """Initialize the positional table with small values, not zeros."""
        table = self.image_encoder.pos_embed
        if table is not None and not table.is_meta:
            nn.init.trunc_normal_(table, std=0.02)

    def load(self, path: str | Path) -> None:
        """Load the weights of a file, all of them.

        Raises:
            FileNotFoundError: If the file does not exist.
            ValueError: If the file holds no SAM, or keys or shapes differ;
                names the first few.
        """
        load_exactly(self, read_sam_file(path), path=path)

    def encode(self, views: Tensor) -> Tensor:
        """Embed images.

        Args:
            views: (V, 3, S, S), normalized, RGB.

        Returns:
            (V, C, S / 16, S / 16).
        """
        embeddings: Tensor = self.image_encoder(views)
        return embeddings

    def decode(
        self,
        embedding: Tensor,
        prompts: Prompts,
        *,
        multimask_output: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Predict the masks of the prompts of one image.

        Args:
            embedding: (1, C, S / 16, S / 16).
            prompts: P prompts, coordinates in pixels of the S x S view.
            multimask_output: Predict three masks per prompt instead of one.

        Returns:
            Logits (P, M, S / 4, S / 4) and predicted IoUs (P, M), M = 3 or 1.
        """
        step = self.prompts_per_batch
        parts = [
            self._decode(
                embedding, prompts[start : start + step], multimask_output
            )
            for start in range(0, len(prompts), step)
        ]
        if not parts:
            side = self.size.mask_size
            count = 3 if multimask_output else 1
            return (
                embedding.new_zeros(0, count, side, side),
                embedding.new_zeros(0, count),
            )
        logits, iou = zip(*parts, strict=True)
        return torch.cat(logits), torch.cat(iou)

    def _decode(
        self, embedding: Tensor, prompts: Prompts, multimask_output: bool
    ) -> tuple[Tensor, Tensor]:
        """Run prompt encoder and mask decoder on one batch of prompts."""
        sparse, dense = self.embed_prompts(prompts)
        logits, iou = self.mask_decoder(
            image_embeddings=embedding,
            image_pe=self.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask_output,
        )
        return logits, iou

    def embed_prompts(self, prompts: Prompts) -> tuple[Tensor, Tensor]:
        """Embed prompts.

        Returns:
            Sparse (P, N, C) and dense (P, C, S / 16, S / 16) embeddings.
        """
        masks = None
        if self.box_mask_prompt and prompts.boxes is not None:
            masks = prompts.box_masks(
                image_size=self.image_size, cells=self.size.mask_size
            )
        points = None
        if prompts.points is not None:
            points = (prompts.points, prompts.labels)
        sparse, dense = self.prompt_encoder(
            points=points, boxes=prompts.boxes, masks=masks
        )
        return sparse, dense
