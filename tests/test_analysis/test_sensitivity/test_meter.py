import pytest
import torch
from wild_net import switches

from taskptq.analysis.sensitivity.meter import Meter, only
from taskptq.core import float_only, quantizing
from taskptq.core.switches import quantizers


@pytest.fixture
def meter(wild, batches, adapter):
    return Meter(wild, batches, adapter=adapter)


def test_only_some_quantizers_are_on(wild):
    before = switches(wild)
    with only(wild, ['head.input_quantizer']):
        on = [name for name, one in quantizers(wild) if one.enabled]
    assert on == ['head.input_quantizer']
    assert switches(wild) == before


def test_all_and_none(wild, batches, meter, adapter):
    assert meter.num_images == 8
    assert meter.measure([]) == 0
    total = meter.measure(meter.names)
    with torch.no_grad(), quantizing(wild):
        quantized = [adapter.forward_heads(wild, b) for b in batches]
    expected = sum(
        meter.loss.between(found, heads)
        for found, heads in zip(quantized, meter.heads, strict=True)
    )
    assert total == pytest.approx(expected / 8)


def test_another_rounding(wild, meter):
    name = 'depthwise.weight_quantizer'
    loss = meter.measure([name], rounders={name: lambda w: w * 0})
    assert loss > 100 * meter.measure([name])
    with torch.no_grad(), float_only(wild):
        assert meter.measure([name], rounders={name: lambda w: w}) == 0


def test_all_but(meter):
    rest = meter.all_but(['head.input_quantizer'])
    assert rest == set(meter.names) - {'head.input_quantizer'}
