"""Counterparts of the attentions of Segment Anything."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskptq.modules.attention import QuantAttention, quantized
from taskptq.modules.linear import QuantLinear
from taskptq.modules.memory import is_exporting
from taskptq.modules.sharing import (
    SharedInputs,
    own_or_shared,
    same_tensor,
)


class QuantSamEncoderAttention(QuantAttention):
    """Counterpart of the image encoder's attention.

    Attends over all tokens of a window or the whole image, with decomposed
    relative positions (MViTv2, Li et al., CVPR 2022, Eq. 3 and 4):
    ``logits[(i, j), (m, n)] = scale * q . k + q . (r_h[i - m] + r_w[j - n])``.

    Both products read the *same* quantized query, as in an integer runtime,
    which stores q once. Since ``scale * q`` is quantized, the tables (float,
    like all positional tables) are divided by ``scale``. The swap report's
    ``attention_bits`` thus hold for the positions' query too. ``qkv`` and
    ``proj`` are converted separately. Used through
    :func:`taskptq.modules.dynamic_class.counterpart_class`.
    """

    num_heads: int
    scale: float
    use_rel_pos: bool
    rel_pos_h: Tensor
    rel_pos_w: Tensor
    qkv: nn.Module
    proj: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """Attend over the tokens of each map.

        Args:
            x: (B, H, W, C); each window is one item of the batch.

        Returns:
            (B, H, W, C).
        """
        size = (x.shape[1], x.shape[2])
        qkv = self.qkv(x).flatten(1, 2).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each B x heads x HW x C / heads
        bias: Callable[[Tensor], Tensor] | None = None
        if self.use_rel_pos:
            bias = partial(self.position_bias, size=size)
        out, _ = self.attend(q * self.scale, k, v, bias=bias)
        out = self.attended(out.transpose(1, 2).flatten(2))  # B x HW x C
        projected: Tensor = self.proj(out.unflatten(1, size))
        return projected

    def position_bias(self, q: Tensor, *, size: tuple[int, int]) -> Tensor:
        """Return the part of the logits that relative positions add.

        Args:
            q: (B, heads, H * W, C), multiplied by ``scale``.
            size: H, W.

        Returns:
            (B, heads, H * W, H * W).
        """
        height, width = size
        q = q.unflatten(2, size)  # B x heads x H x W x C
        rows = offset_table(self.rel_pos_h, size=height) / self.scale
        columns = offset_table(self.rel_pos_w, size=width) / self.scale
        by_row = torch.einsum('bnhwc,hkc->bnhwk', q, rows)
        by_column = torch.einsum('bnhwc,wkc->bnhwk', q, columns)
        bias = by_row[..., :, None] + by_column[..., None, :]
        return bias.flatten(4, 5).flatten(2, 3)


def offset_table(table: Tensor, *, size: int) -> Tensor:
    """Return the embedding of each pair of positions along an axis.

    >>> table = torch.tensor([[-1.0], [0.0], [1.0]])
    >>> offset_table(table, size=2)[..., 0]
    tensor([[ 0., -1.],
            [ 1.,  0.]])

    Args:
        table: (2 L - 1, C), embeddings of the offsets -(L - 1) to L - 1;
            interpolated linearly unless ``size`` is L.
        size: Positions along the axis.

    Returns:
        (size, size, C), indexed by the query's position first.
    """
    num_offsets = 2 * size - 1
    if table.shape[0] != num_offsets:
        channels_first = table.t()[None]  # 1 x C x 2 L - 1
        table = F.interpolate(channels_first, size=num_offsets, mode='linear')[
            0
        ].t()
    index = offset_index(size, table.device)
    pairs: Tensor = table.index_select(0, index).view(size, size, -1)
    return pairs


def offset_index(size: int, device: torch.device) -> Tensor:
    """Return the table row of each pair of positions, (size * size,).

    Args:
        size: Positions along the axis.
        device: Where the indices go.
    """
    # What torch.export traces has no values: a later call must not get it.
    make = _make_index if is_exporting() else _cached_index
    return make(size, device)


def _make_index(size: int, device: torch.device) -> Tensor:
    with torch.inference_mode(mode=False):
        places = torch.arange(size, device=device)
        offsets = places[:, None] - places[None, :]
        return (offsets + size - 1).flatten()


# Cache only indices: gathering 1 MB costs nothing compared to the attention,
# and a cached table would have to follow the parameter.
_cached_index = lru_cache(maxsize=64)(_make_index)


class QuantSamDecoderAttention(SharedInputs, QuantAttention):
    """Counterpart of the mask decoder's attention.

    A tensor that is both query and key, or key and value, is quantized
    once, by the first of ``input_quantizer``, ``key_input_quantizer`` and
    ``value_input_quantizer``. Each call compares its tensors, as the same
    class serves self- and cross-attention. ``q_proj``, ``k_proj``,
    ``v_proj`` (to fewer channels in cross-attention) and ``out_proj`` are
    converted separately. Used through
    :func:`taskptq.modules.dynamic_class.counterpart_class`.
    """

    num_heads: int
    out_proj: nn.Module

    def shared_inputs(self) -> dict[str, tuple[str, ...]]:
        """Return quantizer name -> names of the children that read it."""
        return {
            'input_quantizer': ('q_proj',),
            'key_input_quantizer': ('k_proj',),
            'value_input_quantizer': ('v_proj',),
        }

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend.

        Args:
            q: (B, N, E).
            k: (B, M, E).
            v: (B, M, E).

        Returns:
            (B, N, E).
        """
        q, k, v = (
            x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x in self._projections(q, k, v)
        )  # B x heads x tokens x C
        out, _ = self.attend(q * q.shape[-1] ** -0.5, k, v)
        out = self.attended(out.transpose(1, 2).flatten(2))  # B x N x C
        projected: Tensor = self.out_proj(out)
        return projected

    def _projections(
        self, q: Tensor, k: Tensor, v: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Quantize each distinct tensor once and project all three."""
        own = self.input_quantizer
        q_hat = quantized(own, q)
        of_key = own_or_shared(self.key_input_quantizer, own)
        k_hat = q_hat if same_tensor(k, q) else quantized(of_key, k)
        if same_tensor(v, k):
            v_hat = k_hat
        elif same_tensor(v, q):
            v_hat = q_hat
        else:
            of_value = own_or_shared(self.value_input_quantizer, of_key)
            v_hat = quantized(of_value, v)
        return (
            self._read('q_proj', q_hat, q),
            self._read('k_proj', k_hat, k),
            self._read('v_proj', v_hat, v),
        )

    def _read(self, name: str, x_hat: Tensor, x: Tensor) -> Tensor:
        """Project; readers left float get the float tensor."""
        reader = getattr(self, name)
        if self.input_quantizer is not None and isinstance(
            reader, QuantLinear
        ):
            out: Tensor = reader(x_hat, input_quantized=True)
        else:
            out = reader(x)
        return out
