import pytest
import torch
from torch import nn

from taskptq.core import (
    AffineQuantizer,
    MinMaxObserver,
    QuantSpec,
    dropping,
    enable,
    float_only,
    observing,
    quantizing,
)
from taskptq.core.switches import is_weight_quantizer, quantizers


def tree():
    model = nn.Module()
    for name in ('input', 'weight', 'out_weight'):
        spec = QuantSpec(num_bits=2)
        quantizer = AffineQuantizer(spec, observer=MinMaxObserver(spec))
        setattr(model, f'{name}_quantizer', quantizer)
    return nn.ModuleDict({'layer': model})


def flags(model):
    return [
        (q.enabled, q.observing, q.drop_prob) for _, q in quantizers(model)
    ]


CONTEXTS = [
    (observing, {}, [(False, True), (False, False), (False, False)]),
    (quantizing, {}, [(True, False), (True, False), (True, False)]),
    (
        quantizing,
        {'weights': False},
        [(True, False), (False, False), (False, False)],
    ),
    (
        quantizing,
        {'activations': False},
        [(False, False), (True, False), (True, False)],
    ),
    (float_only, {}, [(False, False)] * 3),
]


@pytest.mark.parametrize(('context', 'kwargs', 'expected'), CONTEXTS)
@pytest.mark.parametrize('start', ['off', 'on'])
def test_contexts_set_and_restore(context, kwargs, expected, start):
    model = tree()
    if start == 'on':
        enable(model)
    before = flags(model)
    with context(model, **kwargs):
        assert [flag[:2] for flag in flags(model)] == expected
    assert flags(model) == before


@pytest.mark.parametrize(('context', 'kwargs', 'expected'), CONTEXTS)
def test_contexts_restore_after_an_exception(context, kwargs, expected):
    model = tree()
    enable(model)
    before = flags(model)
    inside = []

    def fail():
        with context(model, **kwargs):
            inside.extend(flag[:2] for flag in flags(model))
            raise KeyError('x')

    with pytest.raises(KeyError):
        fail()
    assert inside == expected
    assert flags(model) == before


def test_contexts_nest():
    model = tree()
    with quantizing(model):
        with float_only(model):
            assert not any(flag[0] for flag in flags(model))
        assert all(flag[0] for flag in flags(model))
    assert not any(flag[0] for flag in flags(model))


def test_dropping_reaches_activations_only_and_restores():
    model = tree()
    with dropping(model, drop_prob=0.5):
        assert [flag[2] for flag in flags(model)] == [0.5, 0.0, 0.0]
        with dropping(model, drop_prob=0.1):
            assert flags(model)[0][2] == 0.1
        assert flags(model)[0][2] == 0.5
    assert [flag[2] for flag in flags(model)] == [0.0] * 3
    with pytest.raises(KeyError), dropping(model, drop_prob=1.0):
        raise KeyError('x')
    assert [flag[2] for flag in flags(model)] == [0.0] * 3


@pytest.mark.parametrize('drop_prob', [-0.1, 1.5])
def test_dropping_refuses_what_is_no_probability(drop_prob):
    with (
        pytest.raises(ValueError, match=f'drop_prob={drop_prob}'),
        dropping(tree(), drop_prob=drop_prob),
    ):
        pass


def test_enable_is_for_good_and_ends_observing():
    model = tree()
    quantizer = model['layer'].input_quantizer
    with observing(model):
        quantizer(torch.randn(4))
        enable(model)
        assert flags(model)[0][:2] == (True, False)


def test_observing_runs_the_float_model():
    model = tree()
    quantizer = model['layer'].input_quantizer
    x = torch.randn(30)
    with observing(model):
        assert quantizer(x) is x
    quantizer.calibrate()
    with quantizing(model):
        assert not torch.equal(quantizer(x), x)
    with float_only(model):
        assert quantizer(x) is x


def test_names():
    assert [name for name, _ in quantizers(tree())] == [
        'layer.input_quantizer',
        'layer.weight_quantizer',
        'layer.out_weight_quantizer',
    ]
    assert is_weight_quantizer('a.in_proj_weight_quantizer')
    assert not is_weight_quantizer('weight_quantizer.input_quantizer')
