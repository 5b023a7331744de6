"""Counterpart of nn.MultiheadAttention."""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskptq.modules.attention import QuantAttention, attention_bias, quantized
from taskptq.modules.base import QuantModule, Scheme, build_quantizer
from taskptq.modules.sharing import own_or_shared, same_tensor


class QuantMultiheadAttention(QuantAttention, nn.MultiheadAttention):
    """Counterpart of nn.MultiheadAttention.

    Besides the matmuls it quantizes the inputs of the projections
    (``input_quantizer`` for the query, ``key_input_quantizer``,
    ``value_input_quantizer``) and their weights, fused or not. A key that is
    the query is quantized once, by the query's quantizer, and a value that
    is the key by the key's. ``out_proj`` is converted separately.
    """

    weight_slots: ClassVar[dict[str, str]] = {
        'in_proj_weight': 'in_proj_weight_quantizer',
        'q_proj_weight': 'q_proj_weight_quantizer',
        'k_proj_weight': 'k_proj_weight_quantizer',
        'v_proj_weight': 'v_proj_weight_quantizer',
    }
    bias_slots: ClassVar[dict[str, str]] = {'in_proj_weight': 'in_proj_bias'}

    def add_quantizers(self, scheme: Scheme) -> None:
        """Register the quantizers of inputs, weights and matmuls."""
        self.input_quantizer = build_quantizer(scheme.activation)
        self.key_input_quantizer = build_quantizer(scheme.activation)
        self.value_input_quantizer = build_quantizer(scheme.activation)
        super().add_quantizers(scheme)
        # With this flag nn.TransformerEncoderLayer would run a fused kernel
        # on the float weights; nothing here reads it.
        self._qkv_same_embed_dim = False

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend; same arguments and results as nn.MultiheadAttention.

        A query that may attend to nothing yields zeros (the float module
        yields zeros or NaN, depending on ``need_weights``).

        Args:
            query: (N, B, E), (B, N, E) if ``batch_first``, or (N, E).
            key: Laid out like ``query``, with M tokens, ``kdim`` channels.
            value: Laid out like ``query``, with M tokens, ``vdim`` channels.
            key_padding_mask: (B, M), or (M,) unbatched; True is padding.
            need_weights: Whether to return the attention weights.
            attn_mask: (N, M) or (B * num_heads, N, M); True forbids.
            average_attn_weights: Whether to average the weights over heads.
            is_causal: Hint that ``attn_mask`` is causal.

        Returns:
            Output shaped like ``query``, and the weights: (B, N, M), or
            (B, num_heads, N, M), without B if unbatched; or None.

        Raises:
            RuntimeError: If ``is_causal`` comes without ``attn_mask``.
            TypeError: If ``query`` is a nested tensor.
        """
        if is_causal and attn_mask is None:
            raise RuntimeError(
                'is_causal=True is only a hint: give the mask as attn_mask'
            )
        if query.is_nested:
            raise TypeError(
                'query is a nested tensor, which a quantized attention '
                'cannot read: call leave_fast_paths(model) after swapping'
            )
        batched = query.dim() == 3
        if key_padding_mask is not None and not batched:
            key_padding_mask = key_padding_mask[None]
        bias = attention_bias(
            attn_mask,
            key_padding_mask,
            num_heads=self.num_heads,
            dtype=query.dtype,
        )
        q, k, v = (
            self._batch_first(x) for x in self._project(query, key, value)
        )
        k, v, bias = self._extended(k, v, bias)
        x, attention = self._attend(q, k, v, bias)
        x = self.attended(x)
        x = self.out_proj(x if self.batch_first else x.transpose(0, 1))
        if not batched:
            x = x.squeeze(0 if self.batch_first else 1)
        if not need_weights:
            return x, None
        if average_attn_weights:
            attention = attention.mean(dim=1)
        return x, attention if batched else attention.squeeze(0)

    def _project(
        self, query: Tensor, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Quantize the inputs and project them, in their own layout."""
        key_is_query = same_tensor(key, query)
        value_is_key = same_tensor(value, key)
        query = quantized(self.input_quantizer, query)
        key_quantizer = own_or_shared(
            self.key_input_quantizer, self.input_quantizer
        )
        key = query if key_is_query else quantized(key_quantizer, key)
        if value_is_key:
            value = key
        else:
            value = quantized(
                own_or_shared(self.value_input_quantizer, key_quantizer),
                value,
            )
        bias = self.quantized_bias('in_proj_weight')
        if self._parameters['in_proj_weight'] is None:
            biases = (None,) * 3 if bias is None else bias.chunk(3)
            return (
                F.linear(query, self._weight('q_proj_weight'), biases[0]),
                F.linear(key, self._weight('k_proj_weight'), biases[1]),
                F.linear(value, self._weight('v_proj_weight'), biases[2]),
            )
        weight = self._weight('in_proj_weight')  # 3 E x E
        if key_is_query and value_is_key:
            q, k, v = F.linear(query, weight, bias).chunk(3, dim=-1)
            return q, k, v
        biases = (None,) * 3 if bias is None else bias.chunk(3)
        q, k, v = (
            F.linear(x, part, part_bias)
            for x, part, part_bias in zip(
                (query, key, value), weight.chunk(3), biases, strict=True
            )
        )
        return q, k, v

    def _weight(self, parameter: str) -> Tensor:
        return self.quantized_weight(parameter)

    def _batch_first(self, x: Tensor) -> Tensor:
        """Return (B, N, E) from any of the three layouts."""
        if x.dim() == 2:
            return x[None]
        return x if self.batch_first else x.transpose(0, 1)

    def _extended(
        self, k: Tensor, v: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Append the learned and the zero token, (B, M, E) -> (B, M', E)."""
        length = k.shape[1]
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(k.shape[0], -1, -1)], dim=1)
            v = torch.cat([v, self.bias_v.expand(v.shape[0], -1, -1)], dim=1)
        if self.add_zero_attn:
            k = F.pad(k, (0, 0, 0, 1))
            v = F.pad(v, (0, 0, 0, 1))
        if bias is not None and k.shape[1] > length:
            bias = F.pad(bias, (0, k.shape[1] - length))
        return k, v, bias

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Attend head by head, (B, N, E) -> (B, N, E), (B, H, N, M)."""
        q, k, v = (
            x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x in (q, k, v)
        )  # B x H x N x E / H
        nothing = None
        if bias is not None:
            # torch.isneginf has no form in ONNX.
            nothing = (bias == -torch.inf).all(dim=-1, keepdim=True)
            bias = bias.masked_fill(nothing, 0.0)
        x, attention = self.attend(
            q * self.head_dim**-0.5, k, v, bias=bias, dropout=self.dropout
        )
        if nothing is not None:
            x = x.masked_fill(nothing, 0.0)
            attention = attention.masked_fill(nothing, 0.0)
        return x.transpose(1, 2).flatten(2), attention


def leave_fast_paths(model: nn.Module) -> list[str]:
    """Keep torch's transformer layers off their fused inference kernel.

    In eval mode without gradients nn.TransformerEncoderLayer passes the
    float weights of its children to one kernel, and nn.TransformerEncoder
    packs padded batches into nested tensors; both bypass every quantizer.

    Args:
        model: Model after swapping; changed in place.

    Returns:
        Qualified names of the changed layers and encoders.
    """
    changed = []
    for name, module in model.named_modules():
        if not any(isinstance(m, QuantModule) for m in module.modules()):
            continue
        if isinstance(module, nn.TransformerEncoderLayer):
            # Only the kernel choice reads this, not the activation.
            module.activation_relu_or_gelu = 0
            changed.append(name)
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
            changed.append(name)
    return changed
