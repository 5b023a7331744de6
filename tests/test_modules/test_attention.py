import pytest
import torch
import torch.nn.functional as F
from torch import nn

from taskptq.core import QuantizerConfig, observing, quantizing
from taskptq.methods.ptq4sam.output_error import AttentionOutputObserver
from taskptq.methods.ptq4sam.power_of_two import PowerOfTwoQuantizer
from taskptq.modules import QuantAttention, Scheme, attention_bias


class Attention(QuantAttention):
    """Only the matmuls."""

    def forward(self, q, k, v, **kwargs):
        return self.attend(q, k, v, **kwargs)


def make(scheme):
    return Attention.from_float(nn.Identity(), scheme=scheme)


def operands():
    return (
        torch.randn(2, 3, 5, 4),
        torch.randn(2, 3, 6, 4),
        torch.randn(2, 3, 6, 7),
    )


def test_off_equals_torch(lab):
    q, k, v = operands()
    bias = torch.randn(3, 5, 6)
    out, weights = make(lab.scheme())(q * 0.5, k, v, bias=bias)
    expected = F.scaled_dot_product_attention(
        q, k, v, attn_mask=bias, scale=0.5
    )
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 5))


def test_the_four_points(lab):
    attention = make(lab.scheme())
    q, k, v = operands()
    lab.calibrate(attention, lambda m: m(q, k, v))
    with quantizing(attention):
        counts = lab.fired(attention, lambda m: m(q, k, v))
        out, weights = attention(q, k, v)
        logits = attention.query_quantizer(q) @ attention.key_quantizer(
            k
        ).transpose(-2, -1)
        expected = attention.softmax_quantizer(logits.softmax(-1))
        assert torch.equal(weights, expected)
        assert torch.equal(out, expected @ attention.value_quantizer(v))
    assert counts == {
        f'{name}_quantizer': 1 for name in ('query', 'key', 'softmax', 'value')
    }


def test_softmax_may_have_a_recipe_of_its_own():
    softmax = QuantizerConfig(quantizer=PowerOfTwoQuantizer)
    attention = make(Scheme(softmax=softmax))
    assert isinstance(attention.softmax_quantizer, PowerOfTwoQuantizer)
    assert attention.query_quantizer is None


def test_dropout_only_while_training(lab):
    attention = make(lab.scheme())
    q, k, v = operands()
    attention.train()
    _, weights = attention(q, k, v, dropout=0.5)
    assert (weights == 0).any()
    attention.eval()
    _, weights = attention(q, k, v, dropout=0.5)
    assert (weights > 0).all()


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_masks_merge(dtype):
    pairs = torch.rand(5, 6) > 0.7
    padding = torch.rand(2, 6) > 0.7
    bias = attention_bias(pairs, padding, num_heads=3, dtype=dtype)
    assert bias.dtype == dtype
    forbidden = torch.isneginf(bias.expand(2, 3, 5, 6))
    expected = pairs[None, None] | padding[:, None, None]
    assert torch.equal(forbidden, expected.expand(2, 3, 5, 6))
    assert attention_bias(None, None, num_heads=3, dtype=dtype) is None


def test_masks_per_head():
    masks = torch.randn(6, 5, 6)
    bias = attention_bias(masks, None, num_heads=3, dtype=torch.float32)
    assert torch.equal(bias, masks.view(2, 3, 5, 6))


@pytest.mark.parametrize('lead', [(2,), (2, 4)])
def test_observers_of_outputs_see_attention_with_its_value(lead):
    softmax = QuantizerConfig(
        quantizer=PowerOfTwoQuantizer,
        observer=AttentionOutputObserver,
        observer_kwargs={'per_head': True, 'maps': 8},
    )
    attention = make(Scheme(softmax=softmax))
    q, k = torch.randn(*lead, 3, 5, 4), torch.randn(*lead, 3, 6, 4)
    v = torch.randn(*lead, 3, 6, 7)
    observer = attention.softmax_quantizer.observer
    attention(q, k, v)
    assert not observer.observed
    with observing(attention):
        out, weights = attention(q, k, v)
    ((rows, columns),) = observer.pieces()
    heads = [
        x.reshape(-1, *x.shape[-3:]).transpose(0, 1) for x in (weights, v, out)
    ]
    assert torch.equal(rows, heads[0])
    assert torch.equal(columns, heads[1])
    torch.testing.assert_close(rows @ columns, heads[2])
    assert attention.softmax_quantizer.calibrate()
    assert attention.softmax_quantizer.scale.shape == (3,)
    with quantizing(attention):
        assert attention(q, k, v)[0].shape == out.shape
