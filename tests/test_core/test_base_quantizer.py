"""What every quantizer has."""

import pytest
import torch

from taskptq.core import AffineQuantizer, MinMaxObserver, QuantSpec
from taskptq.core.base_quantizer import CodedQuantizer, Quantizer
from taskptq.core.settings import SettingError


@pytest.mark.parametrize('base', [Quantizer, CodedQuantizer])
def test_bases_leave_the_grid_to_subclasses(base):
    quantizer = base(QuantSpec())
    with pytest.raises(NotImplementedError):
        quantizer.fake_quantize(torch.ones(1))


def test_one_bit_needs_another_kind_of_grid():
    with pytest.raises(SettingError, match='num_bits=1: give Quantizer at'):
        Quantizer(QuantSpec(num_bits=1))


def test_legal_grids_are_those_of_the_bits():
    quantizer = AffineQuantizer(QuantSpec(num_bits=2))
    assert set(quantizer.legal_grids()) == {(-2, 1), (0, 3)}
    assert quantizer.num_levels == 4
    assert quantizer.has_zero


def test_a_class_keeps_a_point_by_default():
    settings = {'learn_zero_point': True}
    found = Quantizer.for_spec(QuantSpec(num_bits=8), settings)
    assert found == (Quantizer, settings)


def test_weights_are_calibrated_once():
    spec = QuantSpec(num_bits=4, ch_axis=0)
    quantizer = AffineQuantizer(spec, observer=MinMaxObserver(spec))
    quantizer.calibrate_weight(torch.eye(3))
    scale = quantizer.scale.clone()
    quantizer.calibrate_weight(torch.eye(3) * 9)
    assert torch.equal(quantizer.scale, scale)
    assert torch.equal(quantizer.steps(), scale)


def test_integers_of_a_uniform_grid_are_its_codes():
    spec = QuantSpec(num_bits=4, ch_axis=0)
    quantizer = AffineQuantizer(spec, observer=MinMaxObserver(spec))
    quantizer.calibrate_weight(torch.eye(3))
    codes = quantizer.quantize(torch.eye(3))
    form = quantizer.integer_form(codes)
    assert form.codes is codes
    assert (form.num_bits, form.quant_min) == (4, quantizer.quant_min)
