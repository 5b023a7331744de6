"""Closed-form rounding of a unit: each layer sees the ones before rounded."""

import copy

import pytest
import torch
from torch import nn

from taskptq.core import float_only, quantizing
from taskptq.prepare.blocks import Unit
from taskptq.reconstruction.rounding import closed_form
from taskptq.reconstruction.rounding.closed_form import round_unit
from taskptq.reconstruction.rounding.gptq import (
    HessianAccumulator,
    gptq_layer,
)


class Data:
    """Runs the unit on its inputs, as UnitData does."""

    def __init__(self, module, inputs):
        self.module, self.inputs, self.runs = module, inputs, 0

    def compute(self, stream, *, keep):
        assert (stream, keep) == ('quant', ())
        self.runs += 1
        with torch.no_grad(), quantizing(self.module):
            for x in self.inputs:
                self.module(x)


class Pair(nn.Module):
    """Two layers in a row, and one that nothing calls."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(12, 12)
        self.second = nn.Linear(12, 12)
        self.idle = nn.Linear(12, 12)

    def forward(self, x):
        return self.second(self.first(x).relu())


@pytest.fixture
def pair(quantized, quick):
    """The unit, its data and the settings."""
    mixing = torch.randn(12, 12)
    inputs = [torch.randn(64, 12) @ mixing for _ in range(2)]
    model = Pair()
    with torch.no_grad():
        model.idle.weight.copy_(model.first.weight)
    batches = [torch.cat(inputs)]
    model.forward_all = model.forward
    model.forward = lambda x: model.idle(x) + model.forward_all(x)
    quantized(model, batches, bits=3)
    del model.forward
    return Unit('pair', model), Data(model, inputs), quick()


def test_second_layer_sees_the_first_one_rounded(pair):
    unit, data, config = pair
    model = copy.deepcopy(unit.module)
    result = round_unit(unit, data, config)
    assert (result.name, result.steps) == ('pair', 0)
    # By hand: the moments of each layer's quantized inputs, one by one.
    with torch.no_grad(), quantizing(model):
        for name in ('first', 'second'):
            layer, moments = getattr(model, name), HessianAccumulator()
            for x in data.inputs:
                x = model.first(x).relu() if name == 'second' else x
                moments.add(layer.input_quantizer(x))
            codes = gptq_layer(
                layer, 'weight', moments.hessian(), damping=0.01
            )
            layer.set_codes('weight', codes)
            assert torch.equal(getattr(unit.module, name).codes(), codes)


def test_output_is_nearer_than_by_rounding_to_nearest(pair):
    unit, data, config = pair
    nearest = copy.deepcopy(unit.module)
    round_unit(unit, data, config)
    x = torch.cat(data.inputs)
    with torch.no_grad():
        with float_only(nearest):
            target = nearest(x)
        errors = []
        for model in (nearest, unit.module):
            with quantizing(model):
                errors.append(float((model(x) - target).square().mean()))
    assert errors[1] < 0.8 * errors[0]


def test_layer_without_inputs_stays_rounded_to_nearest(pair):
    unit, data, config = pair
    before = unit.module.idle.codes().clone()
    round_unit(unit, data, config)
    assert torch.equal(unit.module.idle.codes(), before)
    assert not unit.module.idle.rounded_parameters
    assert unit.module.first.rounded_parameters == ('weight',)
    # One run for each layer, and no hook is left.
    assert data.runs == 3
    assert not any(m._forward_pre_hooks for m in unit.module.modules())


def test_error_names_the_layer(pair, monkeypatch):
    def fail(*args, **kwargs):
        raise ValueError('no finite moments')

    unit, data, config = pair
    monkeypatch.setattr(closed_form, 'gptq_layer', fail)
    with pytest.raises(ValueError, match=r'first\.weight: no finite'):
        round_unit(unit, data, config)
