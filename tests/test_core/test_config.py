"""A quantizer's recipe: built any number of times, checked at once."""

import pytest

from taskptq.core import (
    LSQQuantizer,
    MinMaxObserver,
    MSEObserver,
    QuantizerConfig,
    QuantSpec,
)
from taskptq.core.head_observer import HEAD_AXIS, HeadObserver
from taskptq.core.settings import SettingError


def test_each_quantizer_has_an_observer_of_its_own():
    config = QuantizerConfig(
        observer=MSEObserver, observer_kwargs={'num_candidates': 7}
    )
    one, two = config.build(), config.build()
    assert type(one.observer) is MSEObserver
    assert one.observer is not two.observer
    assert one.observer.num_candidates == 7
    assert type(QuantizerConfig().build().observer) is MinMaxObserver


@pytest.mark.parametrize('per_channel', [False, True])
def test_axis_counts_only_per_channel(per_channel):
    config = QuantizerConfig(
        spec=QuantSpec(num_bits=3, ch_axis=2), per_channel=per_channel
    )
    quantizer = config.build(ch_axis=1)
    assert quantizer.spec.ch_axis == (1 if per_channel else None)
    assert quantizer.spec.num_bits == 3
    # The recipe itself stays as it was.
    assert config.spec.ch_axis == 2


def test_heads_have_an_observer_each():
    config = QuantizerConfig(per_channel=True)
    quantizer = config.build(ch_axis=1, num_heads=3)
    assert isinstance(quantizer.observer, HeadObserver)
    assert quantizer.spec.ch_axis == HEAD_AXIS
    one = QuantizerConfig().build(num_heads=3)
    assert type(one.observer) is MinMaxObserver


def test_other_bits():
    config = QuantizerConfig(quantizer=LSQQuantizer, per_channel=True)
    found = config.with_bits(2)
    assert found.spec.num_bits == 2
    assert found.quantizer is LSQQuantizer
    assert found.with_bits(config.spec.num_bits) == config


@pytest.mark.parametrize(
    'settings',
    [
        {'spec': {'num_bits': 4}},
        {'per_channel': 1},
        {'quantizer': MinMaxObserver},
        {'observer': 'mse'},
        {'observer_kwargs': [1]},
    ],
)
def test_impossible_values_are_named(settings):
    (name,) = settings
    with pytest.raises(SettingError, match=f'^{name}='):
        QuantizerConfig(**settings)
