import copy
from dataclasses import replace

import pytest
import torch

from taskptq.core import enable, quantizing
from taskptq.methods.qdetr.alignment import AlignedQuantizer
from taskptq.modules import QuantConditionalAttention, counterpart_class

EMBED, HEADS, BATCH, QUERIES, KEYS = 8, 2, 3, 5, 6
MATMULS = {
    'query_quantizer',
    'key_quantizer',
    'value_quantizer',
    'softmax_quantizer',
}
OUT = {'out_proj.input_quantizer', 'out_proj.weight_quantizer'}
SELF_POINTS = (
    MATMULS
    | OUT
    | {'input_quantizer', 'position_input_quantizer'}
    | {
        f'{name}_proj.weight_quantizer'
        for name in ('qcontent', 'kcontent', 'v', 'qpos', 'kpos')
    }
)
CROSS_POINTS = (
    MATMULS
    | OUT
    | {
        'key_input_quantizer',
        'query_position_quantizer',
        'key_position_quantizer',
    }
    | {
        f'{name}_proj.weight_quantizer'
        for name in ('qcontent', 'kcontent', 'v', 'kpos', 'qpos_sine')
    }
    | {
        f'{name}_proj.input_quantizer'
        for name in ('qcontent', 'kpos', 'qpos_sine')
    }
)


def host_classes():
    layers = 'mmdet.models.layers.transformer'
    conditional = pytest.importorskip(f'{layers}.conditional_detr_layers')
    utils = pytest.importorskip(f'{layers}.utils')
    return conditional.ConditionalAttention, utils.ConditionalAttention


def build(*, cross, **kwargs):
    return host_classes()[0](EMBED, HEADS, cross_attn=cross, **kwargs).eval()


def quantize(module, lab):
    cls = counterpart_class(QuantConditionalAttention, type(module))
    quant = cls.from_float(module, scheme=lab.scheme())
    return lab.swap_linears(quant, lab.scheme())


def inputs(*, cross):
    query, query_pos, sine = torch.randn(3, BATCH, QUERIES, EMBED)
    if not cross:
        return {
            'query': query,
            'key': query,
            'query_pos': query_pos,
            'key_pos': query_pos,
        }
    key, key_pos = torch.randn(2, BATCH, KEYS, EMBED)
    return {
        'query': query,
        'key': key,
        'query_pos': query_pos,
        'key_pos': key_pos,
        'ref_sine_embed': sine,
    }


def masks(name, *, cross):
    keys = KEYS if cross else QUERIES
    pairs = torch.rand(QUERIES, keys) > 0.7
    pairs[:, 0] = False
    padding = torch.zeros(BATCH, keys, dtype=torch.bool)
    padding[:, -2:] = True
    return {
        'none': {},
        'pairs': {'attn_mask': pairs},
        'each': {'attn_mask': pairs.repeat(BATCH * HEADS, 1, 1)},
        'float': {'attn_mask': torch.randn(QUERIES, keys)},
        'padding': {'key_padding_mask': padding},
        'both': {'attn_mask': pairs, 'key_padding_mask': padding},
    }[name]


def test_the_host_has_one_such_class():
    assert host_classes()[0] is host_classes()[1]


@pytest.mark.parametrize(
    'mask', ['none', 'pairs', 'each', 'float', 'padding', 'both']
)
@pytest.mark.parametrize(
    ('cross', 'first', 'keep'),
    [
        (False, False, False),
        (True, False, False),
        (True, True, False),
        (True, False, True),
    ],
)
def test_off_equals_float(cross, first, keep, mask, lab):
    module = build(cross=cross, keep_query_pos=keep)
    kwargs = inputs(cross=cross) | masks(mask, cross=cross)
    expected = module(**kwargs, is_first=first)
    quant = quantize(module, lab)
    assert isinstance(quant, host_classes()[0])
    torch.testing.assert_close(
        quant(**kwargs, is_first=first), expected, rtol=1e-5, atol=1e-6
    )


def test_attention_weights_as_the_float_ones(lab):
    module = build(cross=True)
    query, key, value = torch.randn(3, BATCH, KEYS, EMBED)
    expected = module.forward_attn(query, key, value)
    out = quantize(module, lab).forward_attn(query, key, value)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ('cross', 'first'), [(False, False), (True, False), (True, True)]
)
def test_every_point_fires_once(cross, first, lab):
    quant = quantize(build(cross=cross), lab)
    kwargs = inputs(cross=cross)
    lab.calibrate(quant, lambda m: m(**kwargs, is_first=first))
    with quantizing(quant):
        counts = lab.fired(quant, lambda m: m(**kwargs, is_first=first))
    points = CROSS_POINTS if cross else SELF_POINTS
    if first:
        points = points | {
            'qpos_proj.input_quantizer',
            'qpos_proj.weight_quantizer',
        }
    assert counts == dict.fromkeys(points, 1)


@pytest.mark.parametrize('per_head', [False, True])
def test_large_positions_leave_the_content_its_grid(per_head, lab):
    """Of one grid for both, the content would have a step or two."""
    module = build(cross=True)
    with torch.no_grad():
        module.qpos_sine_proj.weight.mul_(1000)
    cls = counterpart_class(QuantConditionalAttention, type(module))
    quant = cls.from_float(module, scheme=lab.scheme(per_head=per_head))
    kwargs = inputs(cross=True)
    lab.calibrate(quant, lambda m: m(**kwargs))
    seen = {}
    for name in ('query_quantizer', 'query_position_quantizer'):
        quantizer = getattr(quant, name)
        quantizer.register_forward_hook(
            lambda _, args, out, name=name: seen.update({name: (*args, out)})
        )
    with quantizing(quant):
        quant(**kwargs)
    content, rounded = seen['query_quantizer']
    position, _ = seen['query_position_quantizer']
    assert position.abs().max() > 200 * content.abs().max()
    assert content.shape == (BATCH, HEADS, QUERIES, EMBED // HEADS)
    step = content.abs().max() / 100
    assert (rounded - content).abs().max() < step


def test_positions_of_self_attention_have_the_bits_of_queries(lab):
    module = build(cross=False)
    cls = counterpart_class(QuantConditionalAttention, type(module))
    scheme = lab.scheme(activation=4, attention=7)
    quant = cls.from_float(module, scheme=scheme)
    assert quant.position_input_quantizer.spec.num_bits == 7
    assert quant.input_quantizer.spec.num_bits == 4


def test_positions_are_not_aligned(lab):
    scheme = lab.scheme()
    scheme = replace(
        scheme, query=replace(scheme.query, quantizer=AlignedQuantizer)
    )
    module = build(cross=True)
    cls = counterpart_class(QuantConditionalAttention, type(module))
    quant = cls.from_float(module, scheme=scheme)
    assert type(quant.query_quantizer) is AlignedQuantizer
    assert type(quant.query_position_quantizer) is type(quant.key_quantizer)


def test_later_layers_have_no_query_position(lab):
    module = build(cross=True)
    module.qpos_proj = None
    kwargs = inputs(cross=True)
    expected = module(**kwargs)
    torch.testing.assert_close(
        quantize(module, lab)(**kwargs), expected, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ('cross', 'missing'),
    [
        (False, 'query_pos'),
        (True, 'key'),
        (True, 'key_pos'),
        (True, 'ref_sine_embed'),
    ],
)
def test_a_missing_input_is_named(cross, missing, lab):
    quant = quantize(build(cross=cross), lab)
    kwargs = inputs(cross=cross) | {missing: None}
    with pytest.raises(ValueError, match=missing):
        quant(**kwargs)


@pytest.mark.parametrize('cross', [True, False])
def test_gradients_freeze_copy_and_state_dict(cross, lab):
    module = build(cross=cross)
    fresh = quantize(copy.deepcopy(module), lab)
    quant = quantize(module, lab)
    kwargs = inputs(cross=cross)
    kwargs['query'].requires_grad_()
    lab.calibrate(quant, lambda m: m(**kwargs))
    with quantizing(quant):
        before = quant(**kwargs)
        before.square().sum().backward()
    assert kwargs['query'].grad.abs().sum() > 0
    assert quant.v_proj.weight.grad.abs().sum() > 0
    enable(quant)
    assert torch.equal(copy.deepcopy(quant)(**kwargs), before)
    lab.load(fresh, quant.state_dict())
    assert torch.equal(fresh(**kwargs), before)
