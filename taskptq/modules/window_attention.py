"""Counterpart of Swin's window attention (mmdet's and mmseg's WindowMSA)."""

from __future__ import annotations

from torch import Tensor, nn

from taskptq.modules.attention import QuantAttention


class QuantWindowMSA(QuantAttention):
    """Counterpart of WindowMSA: attention inside windows.

    ``qkv`` and ``proj`` are converted separately. Used through
    :func:`taskptq.modules.dynamic_class.counterpart_class`.
    """

    num_heads: int
    scale: float
    window_size: tuple[int, int]
    relative_position_bias_table: Tensor
    relative_position_index: Tensor
    qkv: nn.Module
    proj: nn.Module
    attn_drop: nn.Dropout
    proj_drop: nn.Module

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend inside each window.

        Args:
            x: (B * num_windows, N, C), N tokens per window.
            mask: (num_windows, N, N), added to the logits; 0 or negative.

        Returns:
            (B * num_windows, N, C).
        """
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each B' x H x N x C / H
        bias = self.relative_position_bias()
        if mask is not None:
            # Windows vary fastest along the batch axis.
            windows = (-1, mask.shape[0])
            q, k, v = (t.unflatten(0, windows) for t in (q, k, v))
            bias = bias + mask[:, None]  # num_windows x H x N x N
        out, _ = self.attend(
            q * self.scale, k, v, bias=bias, dropout=self.attn_drop.p
        )
        out = self.attended(out.transpose(-3, -2).reshape(x.shape))
        projected: Tensor = self.proj_drop(self.proj(out))
        return projected

    def relative_position_bias(self) -> Tensor:
        """Return the bias of each pair of tokens, (H, N, N)."""
        tokens = self.window_size[0] * self.window_size[1]
        bias = self.relative_position_bias_table[
            self.relative_position_index.reshape(-1)
        ]
        return bias.view(tokens, tokens, -1).permute(2, 0, 1)
