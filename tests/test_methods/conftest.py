"""Attentions of every kind with random biases, and data for them."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from taskptq.testing import TinyWindowAttention


def run(model, batch):
    """Forward of a model whose batches are its arguments."""
    return model(*batch)


def randomized(module, *, seed=0, deviation=0.5):
    """Fill every bias and table with noise: an exact rewrite must face it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if 'bias' in name or 'rel_pos' in name or name == 'pos_embed':
                parameter.normal_(std=deviation, generator=generator)
    return module.eval()


def stats_of(*batches, forward=run):
    return SimpleNamespace(batches=list(batches), forward=forward)


class MaskDecoderModel(nn.Module):
    """segment_anything's mask decoder on embeddings and prompt tokens."""

    def __init__(self):
        from segment_anything.modeling import MaskDecoder, TwoWayTransformer

        super().__init__()
        self.mask_decoder = MaskDecoder(
            transformer_dim=32,
            transformer=TwoWayTransformer(
                depth=2, embedding_dim=32, num_heads=4, mlp_dim=48
            ),
            iou_head_hidden_dim=16,
        )

    def forward(self, image, position, sparse, dense):
        return self.mask_decoder(
            image_embeddings=image,
            image_pe=position,
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )


def decoder_batch(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(shape, generator=generator)

    return (
        noise(1, 32, 8, 8),
        noise(1, 32, 8, 8),
        noise(3, 2, 32),
        noise(1, 32, 8, 8).expand(3, -1, -1, -1),
    )


@pytest.fixture
def mask_decoder():
    pytest.importorskip('segment_anything')
    return randomized(MaskDecoderModel())


@pytest.fixture
def image_encoder():
    """Two windowed blocks (padded: 5 tokens, windows of 3) and a global."""
    pytest.importorskip('segment_anything')
    from segment_anything.modeling import ImageEncoderViT

    encoder = ImageEncoderViT(
        img_size=40,
        patch_size=8,
        embed_dim=24,
        depth=3,
        num_heads=2,
        out_chans=16,
        use_rel_pos=True,
        window_size=3,
        global_attn_indexes=(1,),
    )
    return randomized(encoder)


class Crossing(nn.Module):
    """nn.MultiheadAttention that reads images of words, one padded."""

    def __init__(self, **options):
        super().__init__()
        self.attn = nn.MultiheadAttention(16, 4, **options)

    def forward(self, query, memory, padding):
        if not self.attn.batch_first:
            query, memory = query.transpose(0, 1), memory.transpose(0, 1)
        out, _ = self.attn(query, memory, memory, key_padding_mask=padding)
        return out


def crossing_batch(kdim=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    padding = torch.zeros(2, 9, dtype=torch.bool)
    padding[1, 6:] = True
    return (
        torch.randn(2, 5, 16, generator=generator),
        torch.randn(2, 9, kdim, generator=generator),
        padding,
    )


def window_model(kind):
    """Window attention over 2 x 4 windows of 4 x 4 tokens, masked."""
    if kind == 'tiny':
        attention = TinyWindowAttention(16, num_heads=2, window_size=(4, 4))
    else:
        pytest.importorskip(kind)
        from importlib import import_module

        swin = import_module(f'{kind}.models.backbones.swin')
        attention = swin.WindowMSA(16, 2, (4, 4))
    return randomized(nn.ModuleDict({'attn': attention}))


def window_batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.zeros(4, 16, 16)
    mask[1, :, 8:] = -100.0
    return torch.randn(8, 16, 16, generator=generator), mask
