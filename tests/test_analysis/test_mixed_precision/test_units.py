"""Quantizers are grouped into what can be chosen."""

import pytest

from taskptq.analysis.mixed_precision.units import (
    float_pairs,
    group_units,
    width,
)
from taskptq.analysis.sensitivity.record import POINTS, PointSensitivity

CANDIDATES = (4, 8, 16, 'float')


def make_point(name, point, *, num_bits=8, elements=10):
    return PointSensitivity(
        name=name,
        layer=name.rpartition('.')[0],
        point=point,
        role='',
        num_bits=num_bits,
        macs=1,
        elements=elements,
        sqnr_db=0.0,
        peak_to_std=0.0,
        codes_used=1.0,
        effective_bits=8.0,
        losses={'4': 0.4, '8': 0.2, '16': 0.1},
    )


CONV = [
    make_point('conv.weight_quantizer', 'weight'),
    make_point('conv.input_quantizer', 'activation'),
]
ATTENTION = [
    make_point('attn.in_proj_weight_quantizer', 'weight'),
    make_point('attn.input_quantizer', 'activation'),
    make_point('attn.key_input_quantizer', 'activation'),
    make_point('attn.softmax_quantizer', 'softmax'),
]


def grouped(points, **changes):
    settings = dict(candidates=CANDIDATES, only=POINTS, edges=())
    units = group_units(points, **{**settings, **changes})
    return {unit.key: unit for unit in units}


def test_width():
    assert (width(4), width('float')) == (4, 32)


def test_a_layer_of_one_weight_and_one_input_may_be_float():
    units = grouped(CONV)
    assert units['conv', 'weight'].candidates == (4, 8, 'float')
    assert units['conv', 'activation'].candidates == CANDIDATES
    assert float_pairs(units.values()) == [
        (('conv', 'weight'), ('conv', 'activation'))
    ]


def test_quantizers_of_one_point_are_one_unit_that_is_never_float():
    units = grouped(ATTENTION)
    inputs = units['attn', 'activation']
    assert inputs.names == (
        'attn.input_quantizer',
        'attn.key_input_quantizer',
    )
    assert inputs.losses == {4: 0.8, 8: 0.4, 16: 0.2}
    assert units['attn', 'weight'].elements == 10
    assert inputs.elements == 0
    assert not float_pairs(units.values())


def test_points_that_may_not_change_keep_their_bits():
    units = grouped(CONV, only=('activation',))
    assert units['conv', 'weight'].candidates == (8,)
    assert units['conv', 'activation'].candidates == (4, 8, 16)


def test_edges_never_get_fewer_bits():
    units = grouped(CONV, edges={'conv'})
    assert units['conv', 'weight'].candidates == (8, 'float')
    assert units['conv', 'activation'].candidates == (8, 16, 'float')


def test_the_bits_of_the_recipe_are_a_candidate():
    units = grouped(CONV, candidates=(4,))
    assert units['conv', 'weight'].candidates == (4, 8)


def test_losses_of_weights_shrink_with_a_better_rounding():
    units = grouped(CONV, weight_share=0.1)
    assert units['conv', 'weight'].losses[8] == pytest.approx(0.02)
    assert units['conv', 'activation'].losses[8] == 0.2


def test_a_rounding_that_was_seen_needs_no_share():
    units = grouped(CONV, weight_share=0.1, rounded={'conv.weight_quantizer'})
    losses = units['conv', 'weight'].losses
    assert losses[8] == 0.2
    assert losses[4] == pytest.approx(0.04)
    # All weights of a unit have to be known.
    units = grouped(ATTENTION, weight_share=0.1, rounded={'other'})
    assert units['attn', 'weight'].losses[8] == pytest.approx(0.02)
