"""Tiny attentions of Segment Anything are the library's own."""

import pytest
import torch

from taskptq.testing import sam_models


def test_relative_positions_are_the_librarys():
    pytest.importorskip('segment_anything')
    from segment_anything.modeling.image_encoder import Attention

    own = sam_models.TinyRelativeAttention(16, num_heads=2, size=(3, 4))
    host = Attention(16, 2, use_rel_pos=True, input_size=(3, 4))
    host.load_state_dict(own.state_dict())
    x = torch.randn(2, 3, 4, 16)
    torch.testing.assert_close(own(x), host(x))


def test_token_attention_is_the_librarys():
    pytest.importorskip('segment_anything')
    from segment_anything.modeling.transformer import Attention

    own = sam_models.TinyTokenAttention(16, num_heads=2, inner_channels=8)
    host = Attention(16, 2, downsample_rate=2)
    host.load_state_dict(own.state_dict())
    q, k, v = (
        torch.randn(2, 5, 16),
        torch.randn(2, 7, 16),
        torch.randn(2, 7, 16),
    )
    torch.testing.assert_close(own(q, k, v), host(q, k, v))
