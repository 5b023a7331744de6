"""Counterpart of mmcv's MultiScaleDeformableAttention."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.modules.attention import AttendedTap, quantized
from taskptq.modules.base import Scheme, build_quantizer
from taskptq.modules.sharing import SharedInputs

# Module of the host's sampling functions, imported on the first call.
HOST_MODULE = 'mmcv.ops.multi_scale_deform_attn'


class QuantMultiScaleDeformableAttention(SharedInputs):
    """Counterpart of mmcv's MultiScaleDeformableAttention.

    Quantizes both operands of its weighted sum: the projected values
    (``value_quantizer``) and the softmax outputs (``softmax_quantizer``).
    The sum passes through ``attended`` before ``output_proj``. Sampling
    locations are coordinates and stay float. ``input_quantizer`` serves the
    two projections that read the query; ``value_proj`` and ``output_proj``
    are converted separately. Used through
    :func:`taskptq.modules.dynamic_class.counterpart_class`.
    """

    num_heads: int
    num_levels: int
    num_points: int
    im2col_step: int
    batch_first: bool
    value_proj: nn.Module
    output_proj: nn.Module
    dropout: nn.Module

    def shared_inputs(self) -> dict[str, tuple[str, ...]]:
        """Return quantizer name -> names of the children that read it."""
        return {'input_quantizer': ('sampling_offsets', 'attention_weights')}

    def add_quantizers(self, scheme: Scheme) -> None:
        """Register the quantizers of the query and of the weighted sum."""
        super().add_quantizers(scheme)
        heads = self.num_heads
        self.value_quantizer = build_quantizer(scheme.value, num_heads=heads)
        self.softmax_quantizer = build_quantizer(
            scheme.softmax, num_heads=heads
        )
        self.attended = AttendedTap()

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        identity: Tensor | None = None,
        query_pos: Tensor | None = None,
        key_padding_mask: Tensor | None = None,
        reference_points: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        level_start_index: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Sample and add the identity; same arguments as the host's.

        Args:
            query: (N, B, E), or (B, N, E) if ``batch_first``.
            key: Unused.
            value: (M, B, E), or (B, M, E); None is ``query``.
            identity: Shaped like ``query``; None is ``query``.
            query_pos: Shaped like ``query``, added to it.
            key_padding_mask: (B, M), True is padding.
            reference_points: (B, N, num_levels, 2) as x, y in [0, 1], or
                (B, N, num_levels, 4) as x, y, width, height.
            spatial_shapes: (num_levels, 2) as height, width.
            level_start_index: (num_levels,), first token of each level.
            kwargs: Unused; hosts pass a decoder's whole data flow.

        Returns:
            Shaped like ``query``.

        Raises:
            ValueError: If references or shapes are missing or don't fit.
        """
        if reference_points is None or spatial_shapes is None:
            raise ValueError(
                'deformable attention needs reference_points and '
                'spatial_shapes'
            )
        value = query if value is None else value
        identity = query if identity is None else identity
        query = query if query_pos is None else query + query_pos
        if not self.batch_first:
            query, value = query.transpose(0, 1), value.transpose(0, 1)
        value = self._values(value, key_padding_mask)
        if int(spatial_shapes.prod(dim=1).sum()) != value.shape[1]:
            raise ValueError(
                f'spatial_shapes={spatial_shapes.tolist()} do not add up to '
                f'the {value.shape[1]} tokens of value'
            )
        offsets, weights = self._offsets_and_weights(query)
        x = self._sample(
            value,
            self._locations(offsets, reference_points, spatial_shapes),
            weights,
            spatial_shapes=spatial_shapes,
            level_start_index=level_start_index,
        )
        out: Tensor = self.output_proj(self.attended(x))
        if not self.batch_first:
            out = out.transpose(0, 1)
        out = self.dropout(out) + identity
        return out

    def _values(
        self, value: Tensor, key_padding_mask: Tensor | None
    ) -> Tensor:
        """Project the values, (B, M, E) -> (B, M, H, D)."""
        projected: Tensor = self.value_proj(value)
        if key_padding_mask is not None:
            padding = key_padding_mask[..., None]
            projected = projected.masked_fill(padding, 0.0)
        heads: Tensor = projected.unflatten(-1, (self.num_heads, -1))
        return _quantized_heads(self.value_quantizer, heads)

    def _offsets_and_weights(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Return (B, N, H, L, P, 2) and (B, N, H, L, P) for L levels."""
        shape = (self.num_heads, self.num_levels, self.num_points)
        offsets, logits = self.project('input_quantizer', query)
        logits = logits.unflatten(-1, (self.num_heads, -1))
        weights = _quantized_heads(
            self.softmax_quantizer, logits.softmax(dim=-1)
        )
        return (
            offsets.unflatten(-1, (*shape, 2)),
            weights.unflatten(-1, shape[1:]),
        )

    def _locations(
        self, offsets: Tensor, reference: Tensor, spatial_shapes: Tensor
    ) -> Tensor:
        """Return sampling locations in [0, 1], shaped like ``offsets``.

        Deformable DETR, Zhu et al., ICLR 2021, section 4.1 and appendix A.4
        (boxes as references).
        """
        anchors = reference[:, :, None, :, None]  # B x N x 1 x L x 1 x 2 | 4
        if reference.shape[-1] == 2:
            sizes = spatial_shapes.flip(-1)[:, None]  # L x 1 x 2: width first
            return anchors + offsets / sizes
        if reference.shape[-1] == 4:
            step = anchors[..., 2:] * 0.5 / self.num_points
            return anchors[..., :2] + offsets * step
        raise ValueError(
            f'reference_points have {reference.shape[-1]} values each: give '
            '2 (points) or 4 (boxes)'
        )

    def _sample(
        self,
        value: Tensor,
        locations: Tensor,
        weights: Tensor,
        *,
        spatial_shapes: Tensor,
        level_start_index: Tensor | None,
    ) -> Tensor:
        """Sum the sampled values by their weights, -> (B, N, H * D)."""
        host = importlib.import_module(HOST_MODULE)
        cuda_op = host.IS_CUDA_AVAILABLE and value.is_cuda
        # The CUDA op has no bfloat16 kernel.
        if cuda_op and value.dtype != torch.bfloat16:
            x: Tensor = host.MultiScaleDeformableAttnFunction.apply(
                value,
                spatial_shapes,
                level_start_index,
                locations,
                weights,
                self.im2col_step,
            )
            return x
        x = host.multi_scale_deformable_attn_pytorch(
            value, spatial_shapes, locations, weights
        )
        return x


def _quantized_heads(quantizer: Any, x: Tensor) -> Tensor:
    """Quantize (B, N, H, C), whose heads may have their own grids."""
    if quantizer is None or quantizer.spec.ch_axis is None:
        return quantized(quantizer, x)
    # The CUDA op reads contiguous tensors only.
    by_head = quantized(quantizer, x.transpose(1, 2))  # B x H x N x C
    return by_head.transpose(1, 2).contiguous()
