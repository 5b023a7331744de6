"""Counterpart of mmdet's ConditionalAttention (Conditional, DAB-DETR)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from taskptq.core import QuantizerConfig
from taskptq.modules.attention import (
    QuantAttention,
    attention_bias,
    quantized_heads,
)
from taskptq.modules.base import Scheme, build_quantizer
from taskptq.modules.sharing import SharedInputs


class QuantConditionalAttention(SharedInputs, QuantAttention):
    """Counterpart of mmdet's ConditionalAttention.

    Attends over content and position, which have separate projections:
    added in self-attention, concatenated per head in cross-attention
    (Conditional DETR, Meng et al., ICCV 2021, section 3.3). Used through
    :func:`taskptq.modules.dynamic_class.counterpart_class`.

    A product of concatenated parts is the sum of two products, so each part
    has its own grid: ``query_quantizer`` and ``key_quantizer`` read the
    content, ``query_position_quantizer`` and ``key_position_quantizer`` the
    position. In trained models positions have tens of times the range of
    the content, which a common grid would round to nothing. Query alignment
    applies to the content.
    """

    cross_attn: bool
    keep_query_pos: bool
    num_heads: int
    qcontent_proj: nn.Module
    qpos_proj: nn.Module
    qpos_sine_proj: nn.Module
    kpos_proj: nn.Module
    out_proj: nn.Module
    attn_drop: nn.Dropout
    proj_drop: nn.Module

    def shared_inputs(self) -> dict[str, tuple[str, ...]]:
        """Return quantizer name -> names of the children that read it."""
        if self.cross_attn:
            return {'key_input_quantizer': ('kcontent_proj', 'v_proj')}
        return {
            'input_quantizer': ('qcontent_proj', 'kcontent_proj', 'v_proj'),
            'position_input_quantizer': ('qpos_proj', 'kpos_proj'),
        }

    def add_quantizers(self, scheme: Scheme) -> None:
        """Register the quantizers of the matmuls, separate for positions."""
        super().add_quantizers(scheme)
        if not self.cross_attn:
            self.position_input_quantizer = build_quantizer(
                _position_input(scheme)
            )
            return
        query = scheme.query
        if query and query.quantizer.rescales:
            # A position's length encodes distance, so keep it.
            query = scheme.key
        self.query_position_quantizer = build_quantizer(
            query, num_heads=self.num_heads
        )
        self.key_position_quantizer = build_quantizer(
            scheme.key, num_heads=self.num_heads
        )

    def quantized_query(self, q: Tensor) -> Tensor:
        """Return the queries as the first matmul reads them, (B, H, N, C)."""
        if not self.cross_attn:
            return super().quantized_query(q)
        return _by_parts(
            q, self.query_quantizer, self.query_position_quantizer
        )

    def quantized_key(self, k: Tensor) -> Tensor:
        """Return the keys as the first matmul reads them, (B, H, M, C)."""
        if not self.cross_attn:
            return super().quantized_key(k)
        return _by_parts(k, self.key_quantizer, self.key_position_quantizer)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        query_pos: Tensor | None = None,
        ref_sine_embed: Tensor | None = None,
        key_pos: Tensor | None = None,
        attn_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        is_first: bool = False,
    ) -> Tensor:
        """Attend and add the query; same arguments as the host's.

        Args:
            query: (B, N, E).
            key: (B, M, E); read in cross-attention only.
            query_pos: (B, N, E).
            ref_sine_embed: (B, N, E); read in cross-attention only.
            key_pos: (B, M, E); read in cross-attention only.
            attn_mask: (N, M) or (B * num_heads, N, M); True forbids.
            key_padding_mask: (B, M); True is padding.
            is_first: Whether this is the decoder's first layer.

        Returns:
            (B, N, E).

        Raises:
            ValueError: If a required input is missing.
        """
        if self.cross_attn:
            q, k, v = self._cross_projections(
                query,
                key,
                query_pos=query_pos,
                ref_sine_embed=ref_sine_embed,
                key_pos=key_pos,
                add_position=is_first or self.keep_query_pos,
            )
        else:
            if query_pos is None:
                raise ValueError('query_pos must be given to self-attention')
            q, k, v = self.project('input_quantizer', query)
            q_pos, k_pos = self.project('position_input_quantizer', query_pos)
            q, k = q + q_pos, k + k_pos
        x, _ = self.forward_attn(q, k, v, attn_mask, key_padding_mask)
        out: Tensor = query + self.proj_drop(x)
        return out

    def _cross_projections(
        self,
        query: Tensor,
        key: Tensor | None,
        *,
        query_pos: Tensor | None,
        ref_sine_embed: Tensor | None,
        key_pos: Tensor | None,
        add_position: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return q (B, N, 2 E), k (B, M, 2 E) and v (B, M, E)."""
        if key is None or key_pos is None or ref_sine_embed is None:
            raise ValueError(
                'key, key_pos and ref_sine_embed must be given to '
                'cross-attention'
            )
        q = self.qcontent_proj(query)
        k, v = self.project('key_input_quantizer', key)
        k_pos = self.kpos_proj(key_pos)
        if add_position:
            # Only layers that add the position have qpos_proj.
            q = q + self.qpos_proj(query_pos)
            k = k + k_pos
        q_sine = self.qpos_sine_proj(ref_sine_embed)
        return self._per_head_cat(q, q_sine), self._per_head_cat(k, k_pos), v

    def _per_head_cat(self, content: Tensor, position: Tensor) -> Tensor:
        """Concatenate two (B, N, E) per head, -> (B, N, 2 E)."""
        parts = [
            x.unflatten(-1, (self.num_heads, -1)) for x in (content, position)
        ]
        return torch.cat(parts, dim=-1).flatten(2)

    def forward_attn(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attend over projected tensors.

        Args:
            query: (B, N, C).
            key: (B, M, C).
            value: (B, M, E).
            attn_mask: (N, M) or (B * num_heads, N, M); True forbids.
            key_padding_mask: (B, M); True is padding.

        Returns:
            Output (B, N, E), weights averaged over heads (B, N, M).
        """
        q, k, v = (
            x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x in (query, key, value)
        )  # B x H x N x C / H
        bias = attention_bias(
            attn_mask,
            key_padding_mask,
            num_heads=self.num_heads,
            dtype=query.dtype,
        )
        x, attention = self.attend(
            q * q.shape[-1] ** -0.5,
            k,
            v,
            bias=bias,
            dropout=self.attn_drop.p,
        )
        x = self.out_proj(self.attended(x.transpose(1, 2).flatten(2)))
        return x, attention.mean(dim=1)


def _position_input(scheme: Scheme) -> QuantizerConfig | None:
    """Return the recipe for the inputs of position projections.

    That of other inputs, with at least the bits of queries.
    """
    config, query = scheme.activation, scheme.query
    if config is None or query is None:
        return config
    bits = max(config.spec.num_bits, query.spec.num_bits)
    return config.with_bits(bits)


def _by_parts(x: Tensor, content: Any, position: Any) -> Tensor:
    """Quantize content and position, (B, H, N, 2 C), on their own grids."""
    halves = x.chunk(2, dim=-1)
    return torch.cat(
        [
            quantized_heads(quantizer, half)
            for quantizer, half in zip(
                (content, position), halves, strict=True
            )
        ],
        dim=-1,
    )
