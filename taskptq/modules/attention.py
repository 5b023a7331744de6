"""The quantized matmuls that all attention counterparts share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskptq.core import Quantizer
from taskptq.modules.base import QuantModule, Scheme, build_quantizer


class AttendedTap(nn.Identity):
    """Identity that an attention's result passes before its out projection.

    The co-attended feature D of Q-DETR (Xu et al., CVPR 2023, Eq. 3): the
    concatenated heads of attention x value, (B, N, E). Hook it to read D
    from a float or a quantized model.
    """


class QuantAttention(QuantModule):
    """Mixin: ``softmax(q k^T + bias) v`` with a quantizer at each operand.

    The quantizers are the sub-modules ``query_quantizer``,
    ``key_quantizer``, ``softmax_quantizer`` and ``value_quantizer``.
    Subclasses pass the result through ``attended``.
    """

    def add_quantizers(self, scheme: Scheme) -> None:
        """Register the four quantizers of the matmuls."""
        super().add_quantizers(scheme)
        build = partial(
            build_quantizer, num_heads=getattr(self, 'num_heads', 1)
        )
        self.query_quantizer = build(scheme.query)
        self.key_quantizer = build(scheme.key)
        self.softmax_quantizer = build(scheme.softmax)
        self.value_quantizer = build(scheme.value)
        self.attended = AttendedTap()

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        bias: Tensor | Callable[[Tensor], Tensor] | None = None,
        dropout: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Attend.

        Args:
            q: (..., H, N, C), already scaled.
            k: (..., H, M, C).
            v: (..., H, M, D).
            bias: Added to the logits, broadcastable to (..., N, M): relative
                positions, masks (-inf). Or a function that computes it from
                the quantized q, so that the positions use the same integers
                as the first matmul.
            dropout: Drop probability of the attention weights in training.

        Returns:
            Output (..., H, N, D) and attention weights (..., H, N, M).
        """
        attention = self._logits(q, k, bias).softmax(dim=-1)
        show_value(self.softmax_quantizer, v)
        attention = quantized_heads(self.softmax_quantizer, attention)
        if dropout > 0:
            attention = F.dropout(attention, dropout, self.training)
        return attention @ quantized_heads(self.value_quantizer, v), attention

    def quantized_query(self, q: Tensor) -> Tensor:
        """Return the queries as the first matmul reads them, same shape."""
        return quantized_heads(self.query_quantizer, q)

    def quantized_key(self, k: Tensor) -> Tensor:
        """Return the keys as the first matmul reads them, same shape."""
        return quantized_heads(self.key_quantizer, k)

    def _logits(
        self,
        q: Tensor,
        k: Tensor,
        bias: Tensor | Callable[[Tensor], Tensor] | None,
    ) -> Tensor:
        """Return the input of the softmax, (..., H, N, M)."""
        q = self.quantized_query(q)
        logits = q @ self.quantized_key(k).transpose(-2, -1)
        if bias is None or isinstance(bias, Tensor):
            return logits if bias is None else logits + bias
        # In place: no gradient needs the product, and it may be huge.
        return logits.add_(bias(q))


def quantized(quantizer: object, x: Tensor) -> Tensor:
    """Apply a quantizer; return ``x`` itself if it is None."""
    return x if quantizer is None else quantizer(x)  # type: ignore[operator]


def quantized_heads(quantizer: Any, x: Tensor) -> Tensor:
    """Quantize an operand, (..., H, N, C), whose heads may have own grids.

    A grid's axis counts from the front, so leading axes are merged into one.
    """
    if x.dim() == 4 or quantizer is None or quantizer.spec.ch_axis is None:
        return quantized(quantizer, x)
    rows = x.reshape(-1, *x.shape[-3:])
    return quantized(quantizer, rows).reshape(x.shape)


def show_value(quantizer: object, value: Tensor) -> None:
    """Pass the value to a softmax observer that measures output errors.

    Args:
        quantizer: Quantizer of the softmax about to be observed.
        value: Float value, (..., H, M, D).
    """
    if (
        isinstance(quantizer, Quantizer)
        and quantizer.observing
        and quantizer.observer is not None
        and quantizer.observer.wants_value
    ):
        quantizer.observer.expect_value(value)


def attention_bias(
    attn_mask: Tensor | None,
    key_padding_mask: Tensor | None,
    *,
    num_heads: int,
    dtype: torch.dtype,
) -> Tensor | None:
    """Merge the masks of a multi-head attention into one additive bias.

    >>> attention_bias(torch.tensor([[False, True]]),
    ...                torch.tensor([[0.5, 0.0]]), num_heads=2,
    ...                dtype=torch.float32)
    tensor([[[[0.5000,   -inf]]]])

    Args:
        attn_mask: (N, M) or (B * num_heads, N, M). True forbids a pair;
            floats are added to the logits.
        key_padding_mask: (B, M). True is padding; floats are added to the
            logits.
        num_heads: Heads.
        dtype: Dtype of the bias.

    Returns:
        Bias that broadcasts to (B, num_heads, N, M), None without masks.
    """
    bias = None
    if attn_mask is not None:
        bias = _additive(attn_mask, dtype)
        if bias.dim() == 3 and bias.shape[0] > 1:
            bias = bias.unflatten(0, (-1, num_heads))  # B x H x N x M
    if key_padding_mask is not None:
        padding = _additive(key_padding_mask, dtype)[:, None, None]
        bias = padding if bias is None else bias + padding
    return bias


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.is_floating_point():
        return mask.to(dtype)
    zeros = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return zeros.masked_fill_(mask.to(torch.bool), float('-inf'))
