import copy

import pytest
import torch

from taskptq.core import AffineQuantizer, LSQQuantizer, QuantSpec
from taskptq.methods.ptq4sam.output_error import AttentionOutputObserver
from taskptq.methods.ptq4sam.power_of_two import PowerOfTwoQuantizer

SPEC = QuantSpec(num_bits=4)


def pair(shape=(2, 3, 20, 30), channels=8, sharp=3.0):
    attention = torch.softmax(sharp * torch.randn(shape), dim=-1)
    return attention, torch.randn(*shape[:-2], shape[-1], channels)


def observed(pairs, **kwargs):
    observer = AttentionOutputObserver(SPEC, **kwargs)
    for attention, value in pairs:
        observer.expect_value(value)
        observer.observe(attention)
    return observer


def kept(observer):
    return observer.attention_rows.numel() + observer.value_columns.numel()


@pytest.mark.parametrize(
    'shape', [(2, 3, 20, 30), (3, 20, 30), (2, 5, 3, 20, 30)]
)
def test_whole_rows_with_the_values_they_weigh(shape):
    attention, value = pair(shape)
    observer = observed([(attention, value)], rows=5, channels=3, maps=2)
    ((found, columns),) = observer.pieces()
    maps = 1 if len(shape) == 3 else 2
    assert found.shape == (3, maps, 5, 30)
    assert columns.shape == (3, maps, 30, 3)
    torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:-1]))
    # Each output is one of A V, of the same head.
    outputs = (attention @ value).reshape(-1, 3, 20, 8)
    for head in range(3):
        for out in (found @ columns)[head].flatten():
            gap = (outputs[:, head] - out).abs().min()
            assert gap < 1e-5
    assert observer.max_val.item() == attention.max()
    assert not observer.signed


def test_everything_is_kept_where_it_is_little():
    attention, value = pair((1, 2, 4, 6), channels=3)
    ((found, columns),) = observed([(attention, value)]).pieces()
    assert torch.equal(found.transpose(0, 1), attention)
    assert torch.equal(columns.transpose(0, 1), value)


def test_calls_move_on():
    pairs = [pair()] * 4
    pieces = observed(pairs, rows=2, channels=2, maps=1).pieces()
    assert len({float(a.sum() + a[0, 0, 0, 0]) for a, _ in pieces}) == 4


def test_memory_is_bounded():
    budget = 5000
    observer = AttentionOutputObserver(SPEC, max_elements=budget)
    for _ in range(100):
        attention, value = pair((4, 3, 64, 10))
        observer.expect_value(value)
        observer.observe(attention)
        assert kept(observer) <= budget
    assert observer.num_batches == 100
    assert observer.every > 1
    # Every `every`th call, from the first to the last.
    assert len(observer.pieces()) == -(-100 // observer.every)


def test_one_call_stays_within_an_eighth():
    observer = observed([pair((4, 8, 500, 100))], max_elements=80_000)
    assert kept(observer) <= 10_000
    assert observer.pieces()[0][0].shape[0] == 8


def test_limit_keeps_one_call():
    observer = observed([pair() for _ in range(5)])
    observer.limit(1)
    assert len(observer.pieces()) == 1
    AttentionOutputObserver(SPEC).limit(1)


def test_the_value_is_used_once():
    observer = observed([pair()])
    observer.observe(torch.softmax(torch.randn(2, 3, 4, 30), -1))
    assert [v is None for _, v in observer.pieces()] == [False, True]


def test_without_a_value_the_softmax_is_judged_by_itself():
    observer = AttentionOutputObserver(SPEC, per_head=True, rows=3, maps=2)
    x = torch.softmax(2 * torch.randn(2, 7, 5, 9), -1)
    observer.observe(x)
    ((rows, value),) = observer.pieces()
    assert value is None
    assert rows.shape == (1, 1, 6, 9)
    quantizer = PowerOfTwoQuantizer(SPEC, observer=observer)
    assert quantizer.calibrate()
    assert quantizer.scale.shape == quantizer.tau.shape == (1,)


def test_nan_is_refused_and_nothing_stays():
    observer = AttentionOutputObserver(SPEC)
    observer.expect_value(torch.ones(1, 1, 3, 2))
    with pytest.raises(ValueError, match='NaN'):
        observer.observe(torch.full((1, 1, 2, 3), float('nan')))
    assert observer._value is None
    observer.observe(torch.empty(0, 2, 3, 4))
    assert not observer.observed


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'taus': (1, 3)}, r'taus\[1\]=3: choose one of 0, 1, 2, 4'),
        ({'taus': ()}, 'taus'),
        ({'rows': 0}, 'rows=0'),
    ],
)
def test_impossible_settings(kwargs, message):
    with pytest.raises(ValueError, match=message):
        AttentionOutputObserver(SPEC, **kwargs)


@pytest.mark.parametrize('per_head', [False, True])
def test_sets_tau_and_scale(per_head):
    pairs = [pair(sharp=s) for s in (1.0, 4.0)]
    observer = observed(pairs, per_head=per_head)
    # One head's attention is sharper than the others'.
    for attention, _ in pairs:
        assert attention.shape[1] == 3
    quantizer = PowerOfTwoQuantizer(SPEC, observer=copy.deepcopy(observer))
    assert quantizer.calibrate()
    assert quantizer.observer is None
    count = 3 if per_head else 1
    assert quantizer.scale.shape == quantizer.tau.shape == (count,)
    assert quantizer.granularity.to_dict() == observer.search().to_dict()
    assert not PowerOfTwoQuantizer(
        SPEC, observer=AttentionOutputObserver(SPEC)
    ).calibrate()


@pytest.mark.parametrize('kind', [AffineQuantizer, LSQQuantizer])
def test_range_of_a_uniform_grid(kind):
    attention, value = pair((2, 3, 50, 40), sharp=2.0)
    observer = observed([(attention, value)], rows=50, maps=6)
    quantizer = kind(SPEC, observer=copy.deepcopy(observer))
    assert quantizer.calibrate()

    def error(high):
        other = kind(SPEC)
        other.set_bounds(signed=False)
        other.set_range(torch.zeros(1), high.reshape(1))
        out = other.fake_quantize(attention) @ value
        return float((out - attention @ value).abs().pow(2.4).sum())

    best = quantizer.scale * 15
    high = attention.max()
    others = [error(high * r) for r in torch.linspace(0.05, 1, 20)]
    assert error(best) <= 1.001 * min(others)
    with pytest.raises(ValueError, match='per_head=True'):
        observed([(attention, value)], per_head=True).compute_range()
