import dataclasses

import pytest
import torch

from taskptq.core import (
    AffineQuantizer,
    LSQQuantizer,
    MSEObserver,
    QuantizerConfig,
    QuantSpec,
)


@pytest.mark.parametrize('num_bits', [*range(2, 9), 12, 16])
def test_bounds(num_bits):
    spec = QuantSpec(num_bits=num_bits)
    assert spec.num_levels == 2**num_bits
    low, high = spec.bounds(signed=True)
    assert (low, high) == (-(2 ** (num_bits - 1)), 2 ** (num_bits - 1) - 1)
    assert spec.bounds(signed=False) == (0, 2**num_bits - 1)


@pytest.mark.parametrize('num_bits', [-1, 0, 17])
def test_bits_out_of_range(num_bits):
    with pytest.raises(ValueError, match=f'num_bits={num_bits}.*1 to 16'):
        QuantSpec(num_bits=num_bits)


def test_negative_axis():
    with pytest.raises(ValueError, match='ch_axis=-1'):
        QuantSpec(ch_axis=-1)


def test_frozen_and_plain():
    spec = QuantSpec(num_bits=3, symmetric=True, ch_axis=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.num_bits = 4
    assert QuantSpec(**spec.to_dict()) == spec


def test_config_builds_fresh_quantizers():
    config = QuantizerConfig(
        spec=QuantSpec(num_bits=4),
        per_channel=True,
        quantizer=LSQQuantizer,
        quantizer_kwargs={'learn_zero_point': True},
        observer=MSEObserver,
        observer_kwargs={'norm_p': 2.0},
    )
    one, two = config.build(ch_axis=1), config.build()
    assert isinstance(one, LSQQuantizer)
    assert one.offset is not None
    assert (one.spec.ch_axis, two.spec.ch_axis) == (1, None)
    assert one.observer is not two.observer
    assert one.observer.norm_p == 2.0
    assert config.with_bits(8).build().spec.num_bits == 8
    assert config.spec.num_bits == 4


def test_axis_is_dropped_per_tensor():
    config = QuantizerConfig(spec=QuantSpec(ch_axis=0), per_channel=False)
    quantizer = config.build(ch_axis=0)
    assert isinstance(quantizer, AffineQuantizer)
    assert quantizer.spec.ch_axis is None
    quantizer.observer.observe(torch.randn(3, 4))
    quantizer.calibrate()
    assert quantizer.scale.shape == (1,)
