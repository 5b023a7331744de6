"""Conditional DETR of any width; mmdet's works with 256 channels only."""

from __future__ import annotations

import copy

import torch
from mmdet.models.detectors import ConditionalDETR
from mmdet.models.layers import ConditionalDetrTransformerDecoder
from mmdet.models.layers.transformer.utils import coordinate_to_encoding
from torch import Tensor

from taskptq.registry import MODELS

__all__ = ['SmallConditionalDETR', 'SmallConditionalDecoder']


class SmallConditionalDecoder(ConditionalDetrTransformerDecoder):
    """Decoder of Conditional DETR whose reference encoding fits its width.

    The sine encoding of a reference point is multiplied by a projection of
    the query, channel by channel, so it needs ``embed_dims`` channels: half
    of them per coordinate (Conditional DETR, Meng et al., ICCV 2021, section
    3.3). mmdet always makes 128 per coordinate. With ``embed_dims=256`` this
    decoder computes the same as mmdet's.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_pos: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Decode; same arguments as mmdet's decoder.

        Args:
            query: (B, N, embed_dims).
            key: Output of the encoder, (B, M, embed_dims).
            query_pos: (B, N, embed_dims).
            key_pos: (B, M, embed_dims).
            key_padding_mask: (B, M), True is padding.

        Returns:
            Normalized states of every layer (only the last one without
            ``return_intermediate``), (layers, B, N, embed_dims), and the
            reference points as x, y in [0, 1], (B, N, 2).
        """
        reference = self.ref_point_head(query_pos).sigmoid()  # B x N x 2
        encoding = coordinate_to_encoding(
            reference, num_feats=self.embed_dims // 2
        )
        states = []
        for number, layer in enumerate(self.layers):
            scale = 1 if number == 0 else self.query_scale(query)
            query = layer(
                query,
                key=key,
                query_pos=query_pos,
                key_pos=key_pos,
                key_padding_mask=key_padding_mask,
                ref_sine_embed=encoding * scale,
                is_first=number == 0,
            )
            states.append(query)
        chosen = states if self.return_intermediate else states[-1:]
        return torch.stack([self.post_norm(x) for x in chosen]), reference


@MODELS.register_module()
class SmallConditionalDETR(ConditionalDETR):
    """Conditional DETR whose ``embed_dims`` may be any multiple of 4.

    Configs and parameter names are those of mmdet's ConditionalDETR. The
    number of heads must divide the width, and ``bbox_head.embed_dims`` and
    ``positional_encoding.num_feats`` must match it, as in every DETR.
    """

    def _init_layers(self) -> None:
        """Build mmdet's layers, with the decoder of this module."""
        decoder = copy.deepcopy(self.decoder)
        super()._init_layers()
        self.decoder = SmallConditionalDecoder(**decoder)
