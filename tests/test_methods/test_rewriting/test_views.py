"""Views of projections: every layout shares the parameters' memory."""

import pytest
import torch
from torch import nn

from taskptq.methods.rewriting.views import (
    PARTS,
    attention_views,
    select_views,
)
from taskptq.testing import TinyWindowAttention, tiny_model


def view_of(module):
    (view,), skipped = attention_views(module)
    assert skipped == {}
    return view


def linear_maps(module):
    """The three projections, written down for each kind by hand."""
    if isinstance(module, nn.MultiheadAttention):
        biases = (None,) * 3
        if module.in_proj_bias is not None:
            biases = module.in_proj_bias.chunk(3)
        weights = (
            module.q_proj_weight,
            module.k_proj_weight,
            module.v_proj_weight,
        )
        if module.in_proj_weight is not None:
            weights = module.in_proj_weight.chunk(3)
        return list(zip(weights, biases, strict=True))
    return list(
        zip(module.qkv.weight.chunk(3), module.qkv.bias.chunk(3), strict=True)
    )


@pytest.mark.parametrize(
    'make',
    [
        lambda: nn.MultiheadAttention(8, 2),
        lambda: nn.MultiheadAttention(8, 2, bias=False),
        lambda: nn.MultiheadAttention(8, 2, kdim=6, vdim=4),
        lambda: TinyWindowAttention(8, num_heads=2, window_size=(2, 2)),
    ],
    ids=['fused', 'no bias', 'unfused', 'window'],
)
def test_view_shares_the_parameters(make):
    module = make()
    view = view_of(module)
    for part, (weight, bias) in zip(PARTS, linear_maps(module), strict=True):
        projection = view.part(part)
        assert torch.equal(projection.weight, weight)
        with torch.no_grad():
            projection.weight.mul_(2)
        assert torch.equal(projection.weight, weight)
        assert (projection.bias is None) == (bias is None)
        if bias is not None:
            with torch.no_grad():
                projection.bias.add_(1)
            assert torch.equal(projection.bias, bias)


def test_what_a_view_says_of_its_attention():
    plain = view_of(nn.MultiheadAttention(8, 2))
    assert (plain.num_heads, plain.extra_keys) == (2, False)
    assert view_of(nn.MultiheadAttention(8, 2, add_zero_attn=True)).extra_keys
    assert view_of(nn.MultiheadAttention(8, 2, add_bias_kv=True)).extra_keys


def test_wrapped_projection_is_skipped():
    attention = TinyWindowAttention(8, num_heads=2, window_size=(2, 2))
    attention.qkv = nn.Sequential(attention.qkv)
    views, skipped = attention_views(nn.ModuleDict({'attn': attention}))
    assert views == []
    assert skipped == {'attn': 'qkv is a Sequential, not a linear layer'}


def test_selection_by_name():
    model = tiny_model('transformer')
    views, _ = select_views(model, patterns=['*.1.*'], argument='patterns')
    assert [view.name for view in views] == ['layers.1.self_attn']
    with pytest.raises(ValueError, match=r"x\.patterns: pattern 'head'"):
        select_views(model, patterns=['head'], argument='x.patterns')
    with pytest.raises(ValueError, match='TinyConvNet has no attention'):
        select_views(tiny_model('conv'), patterns=None, argument='x.patterns')
