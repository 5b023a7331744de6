import copy
import io

import pytest
import torch
from torch import nn

from taskptq.core import enable, quantizing
from taskptq.core.switches import quantizers
from taskptq.modules import (
    QuantSamDecoderAttention,
    QuantSamEncoderAttention,
    counterpart_class,
)
from taskptq.modules.sam_attention import offset_table

MATMULS = {
    'query_quantizer',
    'key_quantizer',
    'value_quantizer',
    'softmax_quantizer',
}
ENCODER_POINTS = MATMULS | {
    f'{child}.{point}_quantizer'
    for child in ('qkv', 'proj')
    for point in ('input', 'weight')
}
DECODER_POINTS = (
    MATMULS
    | {'input_quantizer', 'out_proj.input_quantizer'}
    | {f'{child}_proj.weight_quantizer' for child in ('q', 'k', 'v', 'out')}
)
EMBED, HEADS = 16, 4


def host(name):
    return pytest.importorskip(f'segment_anything.modeling.{name}')


def encoder(*, size=(5, 7), rel_pos=True):
    module = host('image_encoder').Attention(
        8,
        num_heads=2,
        use_rel_pos=rel_pos,
        input_size=size if rel_pos else None,
    )
    if rel_pos:
        nn.init.normal_(module.rel_pos_h)
        nn.init.normal_(module.rel_pos_w)
    return module.eval()


def decoder(*, downsample_rate=1):
    return (
        host('transformer')
        .Attention(EMBED, HEADS, downsample_rate=downsample_rate)
        .eval()
    )


def quantize(module, lab, impl, **kwargs):
    scheme = lab.scheme(**kwargs)
    cls = counterpart_class(impl, type(module))
    return lab.swap_linears(cls.from_float(module, scheme=scheme), scheme)


def quantize_encoder(module, lab, **kwargs):
    return quantize(module, lab, QuantSamEncoderAttention, **kwargs)


def quantize_decoder(module, lab, **kwargs):
    return quantize(module, lab, QuantSamDecoderAttention, **kwargs)


def decoder_inputs(kind, *, batch=3):
    tokens, placed_tokens = torch.randn(2, batch, 5, EMBED)
    pixels, placed_pixels = torch.randn(2, batch, 12, EMBED)
    return {
        'all-one': (tokens, tokens, tokens),
        'query-is-key': (placed_tokens, placed_tokens, tokens),
        'key-is-value': (tokens, pixels, pixels),
        'query-is-value': (tokens, placed_tokens, tokens),
        'to-image': (placed_tokens, placed_pixels, pixels),
        'to-tokens': (placed_pixels, placed_tokens, tokens),
    }[kind]


def sharing(kind):
    """Input quantizers that fire beside the query's."""
    return {
        'all-one': set(),
        'query-is-key': {'value_input_quantizer'},
        'key-is-value': {'key_input_quantizer'},
        'query-is-value': {'key_input_quantizer'},
    }.get(kind, {'key_input_quantizer', 'value_input_quantizer'})


KINDS = [
    'all-one',
    'query-is-key',
    'key-is-value',
    'query-is-value',
    'to-image',
    'to-tokens',
]


@pytest.mark.parametrize('rel_pos', [True, False])
@pytest.mark.parametrize('size', [(5, 7), (1, 4)])
def test_encoder_off_equals_float(rel_pos, size, lab):
    module = encoder(size=size, rel_pos=rel_pos)
    x = torch.randn(3, *size, 8)
    expected = module(x)
    quant = quantize_encoder(module, lab)
    assert isinstance(quant, type(module))
    torch.testing.assert_close(quant(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('size', [(4, 9), (8, 3)])
def test_tables_of_another_size_are_interpolated(size, lab):
    module = encoder(size=(5, 7))
    x = torch.randn(2, *size, 8)
    expected = module(x)
    torch.testing.assert_close(
        quantize_encoder(module, lab)(x), expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize('window', [0, 3])
def test_inside_a_block_with_padded_windows(window, lab):
    block = (
        host('image_encoder')
        .Block(8, 2, use_rel_pos=True, window_size=window, input_size=(5, 7))
        .eval()
    )
    nn.init.normal_(block.attn.rel_pos_h)
    nn.init.normal_(block.attn.rel_pos_w)
    x = torch.randn(2, 5, 7, 8)
    expected = block(x)
    block.attn = quantize_encoder(block.attn, lab)
    torch.testing.assert_close(block(x), expected, rtol=1e-5, atol=1e-6)


def test_offset_table_by_hand():
    table = torch.arange(5.0)[:, None]  # offsets -2 to 2
    expected = torch.tensor(
        [[2.0, 1.0, 0.0], [3.0, 2.0, 1.0], [4.0, 3.0, 2.0]]
    )
    assert torch.equal(offset_table(table, size=3)[..., 0], expected)
    # Five values onto three places: their centers are 5/3 apart.
    resized = offset_table(table, size=2)[..., 0]
    torch.testing.assert_close(
        resized, torch.tensor([[2.0, 1 / 3], [11 / 3, 2.0]])
    )


def test_trained_tables_get_gradients_and_are_not_cached(lab):
    module = encoder(size=(3, 4))
    x = torch.randn(2, 3, 4, 8)
    quant = quantize_encoder(copy.deepcopy(module), lab)
    for m in (module, quant):
        m(x).square().sum().backward()
    for name in ('rel_pos_h', 'rel_pos_w'):
        torch.testing.assert_close(
            getattr(quant, name).grad,
            getattr(module, name).grad,
            rtol=1e-4,
            atol=1e-5,
        )
        for m in (module, quant):
            getattr(m, name).data.mul_(-2)
    torch.testing.assert_close(quant(x), module(x), rtol=1e-5, atol=1e-5)


def test_after_inference_mode_gradients_still_flow(lab):
    # The offsets of a size nobody asked for before are cached there.
    quant = quantize_encoder(encoder(size=(11, 13)), lab)
    x = torch.randn(1, 11, 13, 8)
    with torch.inference_mode():
        quant(x)
    quant(x).sum().backward()
    assert quant.rel_pos_h.grad is not None


def test_positions_read_the_quantized_query(lab):
    """Replay the formula by hand on what the query quantizer gives."""
    size = (3, 4)
    quant = quantize_encoder(
        encoder(size=size),
        lab,
        weight=None,
        activation=None,
        softmax=None,
        attention=3,
    )
    x = torch.randn(2, *size, 8)
    lab.calibrate(quant, lambda m: m(x))
    enable(quant)
    seen = []
    handle = quant.query_quantizer.register_forward_hook(
        lambda _m, args, out: seen.append((args[0], out))
    )
    found = quant(x)
    handle.remove()
    ((q, q_hat),) = seen
    assert len(q_hat.unique()) <= 8 < len(q.unique())
    qkv = quant.qkv(x).view(2, 12, 3, 2, 4).permute(2, 0, 3, 1, 4)
    k_hat, v_hat = quant.key_quantizer(qkv[1]), quant.value_quantizer(qkv[2])
    logits = q_hat @ k_hat.transpose(-2, -1)
    for a in range(12):
        for b in range(12):
            table = (
                quant.rel_pos_h[a // 4 - b // 4 + 2]
                + (quant.rel_pos_w[a % 4 - b % 4 + 3])
            )
            logits[:, :, a, b] += (q_hat[:, :, a] / quant.scale) @ table
    out = (logits.softmax(-1) @ v_hat).transpose(1, 2).reshape(2, 3, 4, 8)
    torch.testing.assert_close(found, quant.proj(out), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('downsample_rate', [1, 2])
@pytest.mark.parametrize('kind', KINDS)
def test_decoder_off_equals_float(kind, downsample_rate, lab):
    module = decoder(downsample_rate=downsample_rate)
    inputs = decoder_inputs(kind)
    expected = module(*inputs)
    quant = quantize_decoder(module, lab)
    assert isinstance(quant, type(module))
    torch.testing.assert_close(quant(*inputs), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('rel_pos', [True, False])
def test_every_encoder_point_fires_once(rel_pos, lab):
    quant = quantize_encoder(encoder(rel_pos=rel_pos), lab)
    x = torch.randn(2, 5, 7, 8)
    lab.calibrate(quant, lambda m: m(x))
    with quantizing(quant):
        counts = lab.fired(quant, lambda m: m(x))
    assert counts == dict.fromkeys(ENCODER_POINTS, 1)


@pytest.mark.parametrize('kind', KINDS)
def test_every_decoder_point_fires_once(kind, lab):
    quant = quantize_decoder(decoder(downsample_rate=2), lab)
    inputs = decoder_inputs(kind)
    lab.calibrate(quant, lambda m: m(*inputs))
    with quantizing(quant):
        counts = lab.fired(quant, lambda m: m(*inputs))
    assert counts == dict.fromkeys(DECODER_POINTS | sharing(kind), 1)


def test_a_shared_input_that_comes_back_as_a_copy(lab):
    quant = quantize_decoder(decoder(), lab)
    q, k, v = decoder_inputs('all-one')
    lab.calibrate(quant, lambda m: m(q, k, v))
    enable(quant)
    assert not quant.key_input_quantizer.calibrated
    expected = quant(q, k, v)
    assert torch.equal(quant(q, k.clone(), v.clone()), expected)


@pytest.mark.parametrize('left', ['k_proj', 'out_proj'])
def test_a_reader_left_float_reads_the_float_tensor(left, lab):
    module = decoder()
    inputs = decoder_inputs('all-one')
    cls = counterpart_class(QuantSamDecoderAttention, type(module))
    scheme = lab.scheme(
        activation=2, weight=None, attention=None, softmax=None
    )
    quant = cls.from_float(module, scheme=scheme)
    kept = quant._modules.pop(left)
    quant = lab.swap_linears(quant, scheme)
    quant._modules[left] = kept
    lab.calibrate(quant, lambda m: m(*inputs))
    seen = []
    kept.register_forward_hook(lambda _m, args, _o: seen.append(args[0]))
    with quantizing(quant):
        quant(*inputs)
    assert torch.equal(seen[0], inputs[0]) == (left == 'k_proj')


@pytest.mark.parametrize('part', ['encoder', 'decoder'])
def test_gradients_copies_and_state_dict(part, lab):
    if part == 'encoder':
        module, make = encoder(), quantize_encoder
        inputs = (torch.randn(2, 5, 7, 8).requires_grad_(),)
    else:
        module, make = decoder(downsample_rate=2), quantize_decoder
        inputs = decoder_inputs('to-image')
        inputs[0].requires_grad_()
    fresh = make(copy.deepcopy(module), lab)
    quant = make(module, lab)
    lab.calibrate(quant, lambda m: m(*inputs))
    with quantizing(quant):
        before = quant(*inputs)
        before.square().sum().backward()
    for parameter in quant.parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None
            assert parameter.grad.isfinite().all()
    assert inputs[0].grad.abs().sum() > 0
    enable(quant)
    assert torch.equal(copy.deepcopy(quant)(*inputs), before)
    buffer = io.BytesIO()
    torch.save(quant, buffer)
    buffer.seek(0)
    pickled = torch.load(buffer, weights_only=False)
    assert torch.equal(pickled(*inputs), before)
    lab.load(fresh, quant.state_dict())
    assert torch.equal(fresh(*inputs), before)
    assert len(list(quantizers(fresh))) == len(list(quantizers(quant)))


def test_an_export_leaves_no_indices_without_values():
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.arange(33.0)[:, None])

        def forward(self, x):
            return x + offset_table(self.table, size=17)

    table = Table()
    torch.export.export(table, (torch.zeros(1),))
    found = table(torch.zeros(1))
    assert found[0, 0, 0].item() == 16
