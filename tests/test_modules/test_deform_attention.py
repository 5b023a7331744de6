import copy

import pytest
import torch
from torch import nn

from taskptq.core import enable, quantizing
from taskptq.modules import (
    QuantMultiScaleDeformableAttention,
    counterpart_class,
)

EMBED, HEADS, BATCH, QUERIES = 8, 2, 3, 5
SHAPES = torch.tensor([[4, 5], [2, 3]])
STARTS = torch.tensor([0, 20])
TOKENS = 26
POINTS = {
    'input_quantizer',
    'value_quantizer',
    'softmax_quantizer',
    'sampling_offsets.weight_quantizer',
    'attention_weights.weight_quantizer',
    'value_proj.input_quantizer',
    'value_proj.weight_quantizer',
    'output_proj.input_quantizer',
    'output_proj.weight_quantizer',
}


def build(**kwargs):
    host = pytest.importorskip('mmcv.ops.multi_scale_deform_attn')
    kwargs = {'batch_first': True, 'dropout': 0.0} | kwargs
    module = host.MultiScaleDeformableAttention(
        EMBED, HEADS, num_levels=2, num_points=3, **kwargs
    ).eval()
    for name in ('sampling_offsets', 'attention_weights'):
        nn.init.normal_(getattr(module, name).weight, std=0.5)
    return module


def quantize(module, lab, **kwargs):
    cls = counterpart_class(QuantMultiScaleDeformableAttention, type(module))
    quant = cls.from_float(module, scheme=lab.scheme(**kwargs))
    return lab.swap_linears(quant, lab.scheme(**kwargs))


def inputs(*, batch_first=True, corners=2):
    query, query_pos = torch.randn(2, BATCH, QUERIES, EMBED)
    value = torch.randn(BATCH, TOKENS, EMBED)
    kwargs = {'query': query, 'query_pos': query_pos, 'value': value}
    if not batch_first:
        kwargs = {k: x.transpose(0, 1) for k, x in kwargs.items()}
    return kwargs | {
        'reference_points': torch.rand(BATCH, QUERIES, 2, corners),
        'spatial_shapes': SHAPES,
        'level_start_index': STARTS,
    }


@pytest.mark.parametrize('batch_first', [True, False])
@pytest.mark.parametrize('corners', [2, 4])
@pytest.mark.parametrize('ratio', [1.0, 0.5])
@pytest.mark.parametrize('padded', [True, False])
def test_off_equals_float(batch_first, corners, ratio, padded, lab):
    module = build(batch_first=batch_first, value_proj_ratio=ratio)
    kwargs = inputs(batch_first=batch_first, corners=corners)
    if padded:
        kwargs['key_padding_mask'] = torch.rand(BATCH, TOKENS) > 0.7
    expected = module(**kwargs)
    quant = quantize(module, lab)
    assert isinstance(quant, type(module))
    torch.testing.assert_close(quant(**kwargs), expected, rtol=1e-5, atol=1e-6)


def test_self_attention_and_identity(lab):
    module = build()
    query = torch.randn(BATCH, TOKENS, EMBED)
    kwargs = {
        'query': query,
        'identity': torch.randn_like(query),
        'reference_points': torch.rand(BATCH, TOKENS, 2, 2),
        'spatial_shapes': SHAPES,
        'level_start_index': STARTS,
    }
    expected = module(**kwargs)
    torch.testing.assert_close(
        quantize(module, lab)(**kwargs), expected, rtol=1e-5, atol=1e-6
    )


def test_every_point_fires_once(lab):
    quant = quantize(build(), lab)
    kwargs = inputs()
    lab.calibrate(quant, lambda m: m(**kwargs))
    with quantizing(quant):
        counts = lab.fired(quant, lambda m: m(**kwargs))
    assert counts == dict.fromkeys(POINTS, 1)
    assert quant.softmax_quantizer.quant_min == 0


def test_both_operands_of_the_sum_are_quantized(lab):
    module = build()
    quant = quantize(module, lab)
    kwargs = inputs()
    lab.calibrate(quant, lambda m: m(**kwargs))
    expected = module(**kwargs)
    for point in (quant.value_quantizer, quant.softmax_quantizer):
        point.enabled = True
        assert not torch.equal(quant(**kwargs), expected)
        point.enabled = False


def test_gradients_freeze_copy_and_state_dict(lab):
    module = build()
    fresh = quantize(copy.deepcopy(module), lab)
    quant = quantize(module, lab)
    kwargs = inputs()
    kwargs['query'].requires_grad_()
    kwargs['value'].requires_grad_()
    lab.calibrate(quant, lambda m: m(**kwargs))
    with quantizing(quant):
        before = quant(**kwargs)
        before.square().sum().backward()
    for tensor in (
        kwargs['query'],
        kwargs['value'],
        quant.sampling_offsets.weight,
        quant.attention_weights.weight,
        quant.value_proj.weight,
    ):
        assert tensor.grad.abs().sum() > 0
    enable(quant)
    assert torch.equal(copy.deepcopy(quant)(**kwargs), before)
    lab.load(fresh, quant.state_dict())
    assert torch.equal(fresh(**kwargs), before)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'reference_points': None}, 'reference_points'),
        ({'spatial_shapes': None}, 'spatial_shapes'),
        ({'spatial_shapes': SHAPES + 1}, '26 tokens'),
        ({'reference_points': torch.rand(BATCH, QUERIES, 2, 3)}, '3 values'),
    ],
)
def test_a_wrong_input_is_named(change, message, lab):
    quant = quantize(build(), lab)
    with pytest.raises(ValueError, match=message):
        quant(**(inputs() | change))


@pytest.mark.gpu
@pytest.mark.parametrize('per_head', [False, True])
def test_cuda_equals_float(per_head, lab):
    module = build().cuda()
    kwargs = {k: x.cuda() for k, x in inputs().items()}
    expected = module(**kwargs)
    quant = quantize(module, lab, per_head=per_head).cuda()
    torch.testing.assert_close(quant(**kwargs), expected, rtol=1e-5, atol=1e-5)
