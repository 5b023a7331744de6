import copy
import itertools

import pytest
import torch
from torch import nn

from taskptq.core import LSQQuantizer, enable, quantizing
from taskptq.modules import QuantMultiheadAttention, leave_fast_paths

EMBED, HEADS, BATCH, QUERIES, KEYS = 8, 2, 3, 5, 6
MATMULS = {
    'query_quantizer',
    'key_quantizer',
    'value_quantizer',
    'softmax_quantizer',
}
VARIANTS = {
    'plain': {},
    'batch_first': {'batch_first': True},
    'no_bias': {'bias': False, 'batch_first': True},
    'unfused': {'kdim': 6, 'vdim': 10, 'batch_first': True},
    'unfused_no_bias': {'kdim': 6, 'vdim': 10, 'bias': False},
    'bias_kv': {'add_bias_kv': True},
    'zero_attn': {'add_zero_attn': True, 'batch_first': True},
    'both': {'add_bias_kv': True, 'add_zero_attn': True},
    'unfused_both': {
        'kdim': 6,
        'vdim': 8,
        'add_bias_kv': True,
        'add_zero_attn': True,
    },
}


def build(**kwargs):
    module = nn.MultiheadAttention(EMBED, HEADS, **kwargs).eval()
    for parameter in (module.in_proj_bias, module.out_proj.bias):
        if parameter is not None:
            nn.init.normal_(parameter)
    return module


def quantize(module, lab, **kwargs):
    scheme = lab.scheme(**kwargs)
    quant = QuantMultiheadAttention.from_float(module, scheme=scheme)
    return lab.swap_linears(quant, scheme)


def inputs(module, *, batched=True):
    """Return query, key, value in the module's layout."""
    sizes = ((QUERIES, EMBED), (KEYS, module.kdim), (KEYS, module.vdim))
    if not batched:
        return tuple(torch.randn(size) for size in sizes)
    tensors = tuple(torch.randn(BATCH, *size) for size in sizes)
    if module.batch_first:
        return tensors
    return tuple(x.transpose(0, 1).contiguous() for x in tensors)


def masks(name, *, batched=True):
    batch = (BATCH,) if batched else ()
    stack = BATCH * HEADS if batched else HEADS
    padding = torch.zeros(*batch, KEYS, dtype=torch.bool)
    padding[..., -2:] = True
    pairs = torch.rand(QUERIES, KEYS) > 0.7
    pairs[:, 0] = False
    each = torch.rand(stack, QUERIES, KEYS) > 0.7
    each[..., 0] = False
    return {
        'none': {},
        'padding': {'key_padding_mask': padding},
        'float_padding': {'key_padding_mask': padding.float() * -3},
        'pairs': {'attn_mask': pairs},
        'float_pairs': {'attn_mask': torch.randn(QUERIES, KEYS)},
        'each': {'attn_mask': each},
        'float_each': {'attn_mask': torch.randn(stack, QUERIES, KEYS)},
        'both': {'attn_mask': pairs, 'key_padding_mask': padding},
        'both_each': {'attn_mask': each, 'key_padding_mask': padding},
    }[name]


def assert_equal(ours, floats):
    torch.testing.assert_close(ours[0], floats[0], rtol=1e-5, atol=1e-6)
    assert (ours[1] is None) == (floats[1] is None)
    if ours[1] is not None:
        torch.testing.assert_close(ours[1], floats[1], rtol=1e-5, atol=1e-6)


MASKS = (
    'none',
    'padding',
    'float_padding',
    'pairs',
    'float_pairs',
    'each',
    'float_each',
    'both',
    'both_each',
)


@pytest.mark.parametrize('batched', [True, False])
@pytest.mark.parametrize('mask', MASKS)
@pytest.mark.parametrize('variant', VARIANTS)
def test_off_equals_float(variant, mask, batched, lab):
    module = build(**VARIANTS[variant])
    quant = quantize(module, lab)
    given = inputs(module, batched=batched)
    kwargs = masks(mask, batched=batched)
    for weights, average in ((True, True), (True, False), (False, True)):
        kwargs.update(need_weights=weights, average_attn_weights=average)
        assert_equal(quant(*given, **kwargs), module(*given, **kwargs))


@pytest.mark.parametrize('batch_first', [True, False])
def test_off_equals_float_in_self_attention(batch_first, lab):
    module = build(batch_first=batch_first)
    quant = quantize(module, lab)
    x = inputs(module)[0]
    assert_equal(quant(x, x, x), module(x, x, x))
    with torch.no_grad():
        assert_equal(quant(x, x, x), module(x, x, x))


@pytest.mark.parametrize('need_weights', [True, False])
def test_causal_hint(need_weights, lab):
    module = build(batch_first=True)
    quant = quantize(module, lab)
    x = inputs(module)[0]
    mask = nn.Transformer.generate_square_subsequent_mask(QUERIES)
    kwargs = {
        'attn_mask': mask,
        'is_causal': True,
        'need_weights': need_weights,
    }
    assert_equal(quant(x, x, x, **kwargs), module(x, x, x, **kwargs))
    with pytest.raises(RuntimeError, match='attn_mask'):
        quant(x, x, x, is_causal=True)


@pytest.mark.parametrize('need_weights', [True, False])
def test_a_query_that_sees_nothing_gives_no_nan(need_weights, lab):
    module = build(batch_first=True)
    quant = quantize(module, lab)
    given = inputs(module)
    padding = torch.zeros(BATCH, KEYS, dtype=torch.bool)
    padding[1] = True
    kwargs = {'key_padding_mask': padding}
    out, weights = quant(*given, need_weights=need_weights, **kwargs)
    expected, _ = module(*given, need_weights=False, **kwargs)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    assert weights is None or (weights[1] == 0).all()


def test_dropout_as_the_float_one(lab):
    module = build(dropout=0.5).train()
    quant = quantize(module, lab)
    given = inputs(module)
    torch.manual_seed(1)
    _, expected = module(*given, average_attn_weights=False)
    torch.manual_seed(1)
    _, weights = quant(*given, average_attn_weights=False)
    torch.testing.assert_close(weights, expected, rtol=1e-5, atol=1e-6)
    assert (weights == 0).any()


def readers(names):
    return {f'{name}input_quantizer' for name in names}


@pytest.mark.parametrize(
    ('pick', 'points'),
    [
        ((0, 0, 0), ('',)),
        ((0, 1, 1), ('', 'key_')),
        ((0, 0, 1), ('', 'value_')),
        ((0, 1, 2), ('', 'key_', 'value_')),
    ],
)
@pytest.mark.parametrize('views', [True, False])
def test_every_point_fires_once(pick, points, views, lab):
    quant = quantize(build(batch_first=not views), lab)
    stock = [torch.randn(BATCH, KEYS, EMBED) for _ in range(3)]

    def run(model):
        given = [stock[i] for i in pick]
        # As the hosts' wrappers do: every argument is its own view.
        model(*([x.transpose(0, 1) for x in given] if views else given))

    lab.calibrate(quant, run)
    with quantizing(quant):
        counts = lab.fired(quant, run)
    expected = (
        MATMULS
        | readers(points)
        | {
            'in_proj_weight_quantizer',
            'out_proj.input_quantizer',
            'out_proj.weight_quantizer',
        }
    )
    assert counts == dict.fromkeys(expected, 1)


def test_unfused_weights_have_quantizers_of_their_own(lab):
    quant = quantize(build(**VARIANTS['unfused']), lab)
    given = inputs(quant)
    lab.calibrate(quant, lambda m: m(*given))
    with quantizing(quant):
        counts = lab.fired(quant, lambda m: m(*given))
    weights = {f'{name}_proj_weight_quantizer' for name in 'qkv'}
    assert weights <= set(counts)
    assert 'in_proj_weight_quantizer' not in counts
    assert set(counts.values()) == {1}
    assert quant.k_proj_weight_quantizer.scale.numel() == EMBED


def test_output_is_that_of_quantized_operands(lab):
    module = build(batch_first=True)
    quant = quantize(module, lab, attention=None, softmax=None)
    query, key, _ = inputs(module)
    lab.calibrate(quant, lambda m: m(query, key, key))
    reference = copy.deepcopy(module)
    weight = quant.in_proj_weight_quantizer.dequantize(
        quant.codes('in_proj_weight')
    )
    reference.in_proj_weight.data = weight
    reference.out_proj = nn.Identity()
    reference.out_proj.weight = torch.eye(EMBED)
    reference.out_proj.bias = None
    with quantizing(quant):
        out, _ = quant(query, key, key)
        x, k = quant.input_quantizer(query), quant.key_input_quantizer(key)
        expected = quant.out_proj(reference(x, k, k)[0])
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('pick', [(0, 0, 0), (0, 1, 1)])
def test_copies_of_a_shared_input_use_the_shared_range(pick, lab):
    quant = quantize(build(), lab)
    stock = [torch.randn(KEYS, BATCH, EMBED) for _ in range(3)]
    given = [stock[i] for i in pick]
    lab.calibrate(quant, lambda m: m(*given))
    with quantizing(quant):
        shared = quant(*given)
        copied = quant(*(x.clone() for x in given))
    torch.testing.assert_close(copied, shared)


@pytest.mark.parametrize('variant', ['plain', 'unfused'])
def test_gradients_flow(variant, lab):
    quant = quantize(
        build(**VARIANTS[variant]), lab, quantizer=LSQQuantizer, softmax=None
    )
    given = [x.requires_grad_() for x in inputs(quant)]
    lab.calibrate(quant, lambda m: m(*given))
    scales = [
        getattr(quant, name).scale.requires_grad_()
        for name in (
            *readers(('', 'key_', 'value_')),
            *(MATMULS - {'softmax_quantizer'}),
        )
    ]
    with quantizing(quant):
        quant(*given)[0].square().sum().backward()
    weights = [getattr(quant, name) for name, _ in quant.active_slots()]
    for tensor in itertools.chain(given, scales, weights):
        assert tensor.grad.abs().sum() > 0


@pytest.mark.parametrize('variant', VARIANTS)
def test_freeze_copy_and_state_dict(variant, lab):
    module = build(**VARIANTS[variant])
    fresh = quantize(copy.deepcopy(module), lab)
    quant = quantize(module, lab)
    given = inputs(module)
    lab.calibrate(quant, lambda m: m(*given))
    with quantizing(quant):
        before, _ = quant(*given)
    quant.freeze()
    quant.out_proj.freeze()
    enable(quant)
    assert torch.equal(quant(*given)[0], before)
    for name, _ in quant.active_slots():
        rows = getattr(quant, name)
        assert all(len(row.unique()) <= 16 for row in rows)
    assert torch.equal(copy.deepcopy(quant)(*given)[0], before)
    lab.load(fresh, quant.state_dict())
    assert torch.equal(fresh(*given)[0], before)


@pytest.mark.parametrize('grad', [True, False])
def test_encoder_layer_does_not_pass_by(grad, lab):
    layer = nn.TransformerEncoderLayer(
        EMBED, HEADS, 16, batch_first=True
    ).eval()
    x = torch.randn(BATCH, QUERIES, EMBED)
    expected = layer(x)
    scheme = lab.scheme(weight=2)
    layer.self_attn = QuantMultiheadAttention.from_float(
        layer.self_attn, scheme=scheme
    )
    lab.calibrate(layer, lambda m: m(x))
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
        with quantizing(layer):
            counts = lab.fired(layer, lambda m: m(x))
            assert not torch.allclose(layer(x), expected, atol=1e-3)
    assert set(counts) > {f'self_attn.{name}' for name in MATMULS}


def test_encoder_layer_with_float_attention_does_not_pass_by(lab):
    layer = nn.TransformerEncoderLayer(
        EMBED, HEADS, 16, batch_first=True
    ).eval()
    attention = layer.self_attn
    layer.self_attn = nn.Identity()
    lab.swap_linears(layer, lab.scheme(weight=2))
    layer.self_attn = attention
    x = torch.randn(BATCH, QUERIES, EMBED)
    lab.calibrate(layer, lambda m: m(x))
    with torch.no_grad():
        expected = layer(x)
        with quantizing(layer):
            counts = lab.fired(layer, lambda m: m(x))
            assert not torch.allclose(layer(x), expected, atol=1e-3)
    assert set(counts.values()) == {1}
    assert len(counts) == 4


def test_padded_encoder_does_not_pass_by(lab):
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(EMBED, HEADS, 16, batch_first=True), 2
    ).eval()
    x = torch.randn(BATCH, QUERIES, EMBED)
    padding = torch.zeros(BATCH, QUERIES, dtype=torch.bool)
    padding[1:, -2:] = True
    kept = ~padding[..., None]

    def run(model):
        with torch.no_grad():
            return model(x, src_key_padding_mask=padding)

    expected = run(encoder)
    scheme = lab.scheme()
    for layer in encoder.layers:
        layer.self_attn = QuantMultiheadAttention.from_float(
            layer.self_attn, scheme=scheme
        )
    with pytest.raises(TypeError, match='leave_fast_paths'):
        run(encoder)
    assert leave_fast_paths(encoder) == ['', 'layers.0', 'layers.1']
    lab.swap_linears(encoder, scheme)
    torch.testing.assert_close(
        run(encoder) * kept, expected * kept, rtol=1e-5, atol=1e-5
    )
    lab.calibrate(encoder, run)
    with quantizing(encoder):
        counts = lab.fired(encoder, run)
    assert len(counts) == 2 * (len(MATMULS) + 2 + 3 * 2)
    assert set(counts.values()) == {1}


def test_untouched_models_keep_their_fast_path():
    encoder = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(EMBED, HEADS, 16, batch_first=True), 2
    )
    assert leave_fast_paths(encoder) == []
    assert encoder.use_nested_tensor


@pytest.mark.parametrize('batch_first', [True, False])
@pytest.mark.parametrize('cross', [True, False])
def test_inside_mmcv(batch_first, cross, lab):
    bricks = pytest.importorskip('mmcv.cnn.bricks.transformer')
    module = bricks.MultiheadAttention(
        EMBED, HEADS, batch_first=batch_first
    ).eval()
    query, key = torch.randn(2, QUERIES, QUERIES, EMBED)
    kwargs = {'query_pos': torch.randn_like(query)}
    if cross:
        kwargs.update(key=key, value=key, key_pos=torch.randn_like(key))
    expected = module(query, **kwargs)
    scheme = lab.scheme()
    module.attn = QuantMultiheadAttention.from_float(
        module.attn, scheme=scheme
    )
    lab.swap_linears(module, scheme)
    torch.testing.assert_close(
        module(query, **kwargs), expected, rtol=1e-5, atol=1e-5
    )
    lab.calibrate(module, lambda m: m(query, **kwargs))
    with quantizing(module):
        counts = lab.fired(module, lambda m: m(query, **kwargs))
    assert len(counts) == len(MATMULS) + 3 + 1 + 2
    assert set(counts.values()) == {1}


@pytest.mark.parametrize('sr_ratio', [1, 2])
def test_inside_mit(sr_ratio, lab):
    mit = pytest.importorskip('mmseg.models.backbones.mit')
    module = mit.EfficientMultiheadAttention(
        EMBED, HEADS, sr_ratio=sr_ratio, qkv_bias=True
    ).eval()
    x = torch.randn(BATCH, 16, EMBED)
    expected = module(x, (4, 4))
    scheme = lab.scheme()
    module.attn = QuantMultiheadAttention.from_float(
        module.attn, scheme=scheme
    )
    torch.testing.assert_close(
        module(x, (4, 4)), expected, rtol=1e-5, atol=1e-5
    )
    lab.calibrate(module, lambda m: m(x, (4, 4)))
    with quantizing(module):
        counts = lab.fired(module, lambda m: m(x, (4, 4)))
    points = ('',) if sr_ratio == 1 else ('', 'key_')
    expected = MATMULS | readers(points) | {'in_proj_weight_quantizer'}
    assert counts == {f'attn.{name}': 1 for name in expected}
