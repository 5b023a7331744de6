"""Tiny seeded models with every kind of quantized layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from taskptq.testing.sam_models import TinyRelativeNet, TinyTwoWayNet


class TinyBlock(nn.Module):
    """Residual block of two convolutions with BatchNorm.

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
        stride: Stride of the first convolution and of the shortcut.
    """

    def __init__(
        self, in_channels: int, out_channels: int, *, stride: int = 1
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(
            in_channels, out_channels, 3, stride, padding=1, bias=False
        )
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(
            out_channels, out_channels, 3, padding=1, bias=False
        )
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return features, (B, C_in, H, W) -> (B, C_out, H', W')."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return torch.relu(out + self.shortcut(x))


class TinyConvNet(nn.Module):
    """Classifier: stem, two residual blocks, linear head; 5 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.stem_bn = nn.BatchNorm2d(8)
        self.layer1 = TinyBlock(8, 8)
        self.layer2 = TinyBlock(8, 16, stride=2)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores, (B, 3, H, W) -> (B, 5)."""
        x = torch.relu(self.stem_bn(self.stem(x)))
        x = self.layer2(self.layer1(x))
        scores: Tensor = self.head(x.mean(dim=(2, 3)))
        return scores


class TinyTransposedNet(nn.Module):
    """Segmentor: strided convolution down, transposed convolution up."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.block = TinyBlock(8, 8)
        self.up = nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1)
        self.up_bn = nn.BatchNorm2d(6)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores, (B, 3, H, W) -> (B, 4, H, W), even sizes."""
        x = self.block(torch.relu(self.down(x)))
        x = torch.relu(self.up_bn(self.up(x)))
        scores: Tensor = self.head(x)
        return scores


class TinyTransformer(nn.Module):
    """Patch embedding, two nn.TransformerEncoderLayer, linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 4, stride=4)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                16, 4, dim_feedforward=32, dropout=0.0, batch_first=True
            )
            for _ in range(2)
        )
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores, (B, 3, H, W) -> (B, 5)."""
        tokens = self.embed(x).flatten(2).transpose(1, 2)  # B x N x 16
        for layer in self.layers:
            tokens = layer(tokens)
        scores: Tensor = self.head(tokens.mean(dim=1))
        return scores


class TinyWindowAttention(nn.Module):
    """Attention inside windows with relative positions, as in Swin.

    Liu et al., ICCV 2021, section 3.2. The attribute names are those of the
    hosts' window attention, so the same counterpart applies.

    Args:
        channels: Input and output channels.
        num_heads: Heads.
        window_size: Height and width of a window, in tokens.
    """

    relative_position_index: Tensor

    def __init__(
        self, channels: int, *, num_heads: int, window_size: tuple[int, int]
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.scale = (channels // num_heads) ** -0.5
        height, width = window_size
        self.relative_position_bias_table = nn.Parameter(
            torch.randn((2 * height - 1) * (2 * width - 1), num_heads)
        )
        rows, columns = torch.meshgrid(
            torch.arange(height), torch.arange(width), indexing='ij'
        )
        rows, columns = rows.flatten(), columns.flatten()
        index = (rows[:, None] - rows + height - 1) * (2 * width - 1)
        index = index + (columns[:, None] - columns + width - 1)
        self.register_buffer('relative_position_index', index)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.attn_drop = nn.Dropout(0.0)
        self.proj = nn.Linear(channels, channels)
        self.proj_drop = nn.Dropout(0.0)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend, (B * num_windows, N, C); mask (num_windows, N, N)."""
        batch, tokens, channels = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        logits = (q * self.scale) @ k.transpose(-2, -1)
        bias = self.relative_position_bias_table[self.relative_position_index]
        logits = logits + bias.permute(2, 0, 1)
        if mask is not None:
            repeats = batch // mask.shape[0]
            logits = logits + mask.repeat(repeats, 1, 1)[:, None]
        weights = self.attn_drop(logits.softmax(dim=-1))
        x = (weights @ v).transpose(1, 2).reshape(batch, tokens, channels)
        out: Tensor = self.proj_drop(self.proj(x))
        return out


class TinyWindowNet(nn.Module):
    """Patch embedding, window attention and an MLP, linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 16, 2, stride=2)
        self.norm1 = nn.LayerNorm(16)
        self.attn = TinyWindowAttention(16, num_heads=2, window_size=(4, 4))
        self.norm2 = nn.LayerNorm(16)
        self.fc1 = nn.Linear(16, 32)
        self.fc2 = nn.Linear(32, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores, (B, 3, H, W) -> (B, 5), H, W % 8 == 0."""
        x = self.embed(x).permute(0, 2, 3, 1)  # B x H / 2 x W / 2 x 16
        x = x.unflatten(2, (-1, 4)).unflatten(1, (-1, 4)).transpose(2, 3)
        windows = x.flatten(3, 4).flatten(0, 2)  # B * num_windows x 16 x 16
        windows = windows + self.attn(self.norm1(windows))
        hidden = nn.functional.gelu(self.fc1(self.norm2(windows)))
        windows = windows + self.fc2(hidden)
        tokens = windows.view(x.shape[0], -1, 16)
        scores: Tensor = self.head(tokens.mean(dim=1))
        return scores


@dataclass(frozen=True, kw_only=True)
class TinyModel:
    """A tiny model.

    Args:
        build: Makes the module.
        input_shape: (C, H, W) of its inputs.
    """

    build: Callable[[], nn.Module]
    input_shape: tuple[int, int, int] = (3, 16, 16)


TINY_MODELS: dict[str, TinyModel] = {
    'conv': TinyModel(build=TinyConvNet),
    'transposed': TinyModel(build=TinyTransposedNet),
    'transformer': TinyModel(build=TinyTransformer),
    'window': TinyModel(build=TinyWindowNet),
    'relative': TinyModel(build=TinyRelativeNet),
    'two-way': TinyModel(build=TinyTwoWayNet),
}


def tiny_model(name: str, *, seed: int = 0) -> nn.Module:
    """Build a tiny model in eval mode, the same for the same seed.

    Its BatchNorms have random statistics, so that folding has an effect.

    Args:
        name: A key of ``TINY_MODELS``.
        seed: Seed of the weights; the global generator is not used.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TINY_MODELS[name].build()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(std=0.2)
                module.running_var.uniform_(0.5, 1.5)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.2)
    return model.eval()


def tiny_batches(
    name: str, *, num_batches: int = 2, batch_size: int = 4, seed: int = 0
) -> list[Tensor]:
    """Return seeded inputs of a tiny model, each (batch_size, C, H, W).

    Args:
        name: A key of ``TINY_MODELS``.
        num_batches: Batches.
        batch_size: Images per batch.
        seed: Seed of the values, normally distributed.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (batch_size, *TINY_MODELS[name].input_shape)
    return [
        torch.randn(shape, generator=generator) for _ in range(num_batches)
    ]
