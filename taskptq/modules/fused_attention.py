"""Torch's fused attention in plain steps, with a quantizer at each operand."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from taskptq.modules.attention import quantized, show_value


def attend(
    query_quantizer: Any,
    key_quantizer: Any,
    softmax_quantizer: Any,
    value_quantizer: Any,
    **given: Any,
) -> Tensor:
    """Attend as ``F.scaled_dot_product_attention`` does, in plain steps.

    Args:
        query_quantizer: Quantizer of the queries, or None, as for the others.
        key_quantizer: Quantizer of the keys.
        softmax_quantizer: Quantizer of the attention weights.
        value_quantizer: Quantizer of the values.
        given: All arguments of torch's function by name; queries are
            (..., N, C), keys (..., M, C), values (..., M, D).

    Returns:
        (..., N, D).
    """
    q, k, v = given['query'], given['key'], given['value']
    scale = given['scale']
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    logits = quantized(query_quantizer, q) @ quantized(
        key_quantizer, k
    ).transpose(-2, -1)
    logits = logits * scale
    mask = given['attn_mask']
    if given['is_causal']:
        ones = torch.ones(logits.shape[-2:], device=q.device)
        mask = ones.tril().bool()
    if mask is not None and mask.dtype == torch.bool:
        logits = logits.masked_fill(~mask, float('-inf'))
    elif mask is not None:
        logits = logits + mask
    weights = logits.softmax(-1)
    show_value(softmax_quantizer, v)
    weights = quantized(softmax_quantizer, weights)
    weights = torch.dropout(weights, given['dropout_p'], True)
    return weights @ quantized(value_quantizer, v)


def _attention_arguments(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> None:
    """Take the arguments of torch's attention, which states them nowhere."""


SIGNATURE = inspect.signature(_attention_arguments)
