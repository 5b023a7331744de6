"""Tiny models with the attentions of Segment Anything."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TinyRelativeAttention(nn.Module):
    """Attention over a map, relative positions split into rows and columns.

    MViTv2, Li et al., CVPR 2022, Eq. 3 and 4. The attribute names are those
    of Segment Anything's image encoder, so the same counterpart applies.

    Args:
        channels: Input and output channels.
        num_heads: Heads.
        size: Height and width of the tables, in tokens.
    """

    def __init__(
        self, channels: int, *, num_heads: int, size: tuple[int, int]
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (channels // num_heads) ** -0.5
        self.use_rel_pos = True
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.rel_pos_h, self.rel_pos_w = (
            nn.Parameter(torch.randn(2 * length - 1, channels // num_heads))
            for length in size
        )

    def forward(self, x: Tensor) -> Tensor:
        """Attend, (B, H, W, C) with the tables' height and width."""
        batch, height, width, channels = x.shape
        shape = (batch, -1, 3, self.num_heads, channels // self.num_heads)
        qkv = self.qkv(x).view(shape)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each B x heads x HW x C
        row = torch.arange(height).repeat_interleave(width)
        column = torch.arange(width).repeat(height)
        positions = (
            self.rel_pos_h[row[:, None] - row + height - 1]
            + self.rel_pos_w[column[:, None] - column + width - 1]
        )  # HW x HW x C
        logits = self.scale * (q @ k.transpose(-2, -1))
        logits = logits + torch.einsum('bnqc,qkc->bnqk', q, positions)
        out = (logits.softmax(dim=-1) @ v).transpose(1, 2).reshape(x.shape)
        projected: Tensor = self.proj(out)
        return projected


class TinyRelativeNet(nn.Module):
    """Patch embedding, attention with relative positions, an MLP, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 4, stride=4)
        self.norm = nn.LayerNorm(16)
        self.attn = TinyRelativeAttention(16, num_heads=2, size=(4, 4))
        self.fc1 = nn.Linear(16, 32)
        self.fc2 = nn.Linear(32, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores, (B, 3, 16, 16) -> (B, 5)."""
        x = self.embed(x).permute(0, 2, 3, 1)  # B x 4 x 4 x 16
        x = x + self.attn(self.norm(x))
        x = x + self.fc2(nn.functional.gelu(self.fc1(x)))
        scores: Tensor = self.head(x.mean(dim=(1, 2)))
        return scores


class TinyTokenAttention(nn.Module):
    """Attention with four projections, to fewer channels inside.

    The attribute names are those of Segment Anything's mask decoder, so the
    same counterpart applies.

    Args:
        channels: Input and output channels.
        num_heads: Heads.
        inner_channels: Channels of q, k and v.
    """

    def __init__(
        self, channels: int, *, num_heads: int, inner_channels: int
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = nn.Linear(channels, inner_channels)
        self.k_proj = nn.Linear(channels, inner_channels)
        self.v_proj = nn.Linear(channels, inner_channels)
        self.out_proj = nn.Linear(inner_channels, channels)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend, (B, N, C) over (B, M, C) twice -> (B, N, C)."""
        pairs = ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        q, k, v = (
            torch.stack(proj(x).chunk(self.num_heads, dim=-1), dim=1)
            for proj, x in pairs
        )  # B x heads x tokens x C / heads
        logits = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        heads = (logits.softmax(dim=-1) @ v).unbind(dim=1)
        out: Tensor = self.out_proj(torch.cat(heads, dim=-1))
        return out


class TinyTwoWayBlock(nn.Module):
    """Tokens attend to themselves and to a map, and the map to them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.self_attn = TinyTokenAttention(
            channels, num_heads=2, inner_channels=channels
        )
        self.to_map, self.to_tokens = (
            TinyTokenAttention(
                channels, num_heads=2, inner_channels=channels // 2
            )
            for _ in range(2)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(3))

    def forward(
        self, tokens: Tensor, pixels: Tensor, position: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return updated tokens and pixels.

        Args:
            tokens: (B, N, C).
            pixels: (B, M, C), from the map.
            position: (B, M, C), added to pixels as queries and keys.
        """
        tokens = tokens + self.self_attn(tokens, tokens, tokens)
        tokens = self.norms[0](tokens)
        seen = self.to_map(tokens, pixels + position, pixels)
        tokens = self.norms[1](tokens + seen)
        answer = self.to_tokens(pixels + position, tokens, tokens)
        return tokens, self.norms[2](pixels + answer)


class TinyTwoWayNet(nn.Module):
    """Patch embedding, two learned tokens, two two-way blocks, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 4, stride=4)
        self.tokens = nn.Embedding(2, 16)
        self.position = nn.Embedding(16, 16)
        self.blocks = nn.ModuleList(TinyTwoWayBlock(16) for _ in range(2))
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores, (B, 3, 16, 16) -> (B, 5)."""
        pixels = self.embed(x).flatten(2).transpose(1, 2)  # B x 16 x 16
        tokens = self.tokens.weight.expand(len(x), -1, -1)
        position = self.position.weight.expand(len(x), -1, -1)
        for block in self.blocks:
            tokens, pixels = block(tokens, pixels, position)
        summary = tokens.mean(dim=1) + pixels.mean(dim=1)
        scores: Tensor = self.head(summary)
        return scores
