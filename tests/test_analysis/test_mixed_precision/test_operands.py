"""Every product knows the quantizers of its operands."""

import pytest
import torch

from taskptq.analysis.mixed_precision.operands import trace_operands
from taskptq.calibration import calibrate
from taskptq.prepare import QConfig, prepare
from taskptq.prepare.products import trace_products
from taskptq.testing import tiny_batches, tiny_model


def forward(model, batch):
    return model(batch)


def traced(name, **settings):
    model = tiny_model(name)
    batches = tiny_batches(name)
    prepare(model, QConfig.from_dict(settings), batch=batches[0])
    calibrate(model, batches, forward=forward)
    products = trace_operands(model, batches[:1], forward=forward)
    return model, batches, {(p.first, p.second): p.macs for p in products}


@pytest.mark.parametrize(
    'name', ['conv', 'transposed', 'transformer', 'window', 'relative']
)
def test_all_products_are_counted_once(name):
    model, batches, found = traced(name)
    report = trace_products(model, batches[:1], forward=forward)
    assert sum(found.values()) == report.total
    both = sum(n for (a, b), n in found.items() if a and b)
    assert both == report.both


def test_a_layer_multiplies_its_input_by_its_weight():
    _, _, found = traced('conv')
    key = ('stem.input_quantizer',), ('stem.weight_quantizer',)
    assert found[key] == 4 * 8 * 3 * 9 * 16 * 16


def test_operands_of_an_attention():
    _, _, found = traced('transformer')
    name = 'layers.0.self_attn'
    for first, second in (('query', 'key'), ('softmax', 'value')):
        pair = (
            (f'{name}.{first}_quantizer',),
            (f'{name}.{second}_quantizer',),
        )
        assert found[pair] > 0
    in_projection = [
        a for a, b in found if b == (f'{name}.in_proj_weight_quantizer',)
    ]
    assert in_projection == [(f'{name}.input_quantizer',)]


def test_a_float_operand_has_no_quantizer():
    _, _, found = traced('conv', keep_float=['stem'])
    assert any(not a and not b for a, b in found)


def test_nothing_of_a_trace_stays():
    model, batches, _ = traced('conv')
    assert 'quantized_weight' not in model.stem.__dict__
    assert not model.stem.input_quantizer._forward_hooks
    assert not torch.is_grad_enabled() or model(batches[0]).requires_grad
