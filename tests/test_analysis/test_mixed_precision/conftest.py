"""Drawn problems: units with losses, and the products that read them."""

import random

import pytest

from taskptq.analysis.mixed_precision.cost import Joint, Problem
from taskptq.analysis.mixed_precision.units import Unit


def draw_problem(seed, *, layers=4, candidates=(4, 8, 16), named=8):
    """Layers of a weight and an input; each bit divides the error by 4."""
    rng = random.Random(seed)
    units = {}
    joints = []
    for number in range(layers):
        layer = f'layer{number}'
        for point in ('weight', 'activation'):
            error = 10 ** rng.uniform(-3, 1)
            allowed = [
                bits
                for bits in candidates
                if point == 'activation' or bits == 'float' or bits <= 8
            ]
            unit = Unit(
                layer=layer,
                point=point,
                names=(f'{layer}.{point}_quantizer',),
                num_bits=named,
                losses={
                    bits: error * 4.0**-bits * rng.uniform(0.5, 2)
                    if bits != 'float'
                    else 0.0
                    for bits in allowed
                },
                elements=rng.randint(10, 1000) if point == 'weight' else 0,
            )
            units[unit.key] = unit
        joints.append(
            Joint(
                first=(layer, 'activation'),
                second=(layer, 'weight'),
                macs=rng.randint(100, 10000),
            )
        )
    joints.append(Joint(first=None, second=None, macs=500))
    return Problem(units=units, joints=joints)


@pytest.fixture
def draw():
    return draw_problem
