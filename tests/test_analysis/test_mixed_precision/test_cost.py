"""Costs have the units that they say."""

import pytest

from taskptq.analysis.mixed_precision.cost import (
    BitOperations,
    Joint,
    LatencyTable,
    MacsAbove,
    Problem,
    WeightBytes,
    build_problem,
    cost_of,
    named_cost,
    price_of,
    uniform_choice,
)
from taskptq.analysis.mixed_precision.operands import Product
from taskptq.analysis.mixed_precision.units import Unit

BITS = (4, 8, 16, 'float')
WEIGHT, INPUT = ('conv', 'weight'), ('conv', 'activation')


def make_unit(layer, point, *, num_bits=8, elements=0):
    candidates = (4, 8, 'float') if point == 'weight' else BITS
    return Unit(
        layer=layer,
        point=point,
        names=(f'{layer}.{point}',),
        num_bits=num_bits,
        losses=dict.fromkeys(candidates, 0.0),
        elements=elements,
    )


@pytest.fixture
def problem():
    return build_problem(
        [
            make_unit('stem', 'weight', elements=10),
            make_unit('stem', 'activation'),
            make_unit('conv', 'weight', elements=100),
            make_unit('conv', 'activation'),
        ],
        [
            Product(
                first=('stem.activation',), second=('stem.weight',), macs=20
            ),
            Product(
                first=('conv.activation',), second=('conv.weight',), macs=60
            ),
            Product(first=(), second=('other',), macs=20),
        ],
        edges=frozenset({'stem'}),
    )


@pytest.mark.parametrize(
    ('weight', 'activation', 'expected'),
    [
        (8, 8, 60),
        (4, 8, 30),
        (4, 4, 15),
        (8, 16, 120),
        ('float', 'float', 960),
    ],
)
def test_bit_operations_are_relative_to_8_by_8(
    problem, weight, activation, expected
):
    choice = {**problem.named(), WEIGHT: weight, INPUT: activation}
    # The product of two float operands costs 16 times that of two bytes.
    counted = (expected + 20 * 16) / 80
    assert cost_of(problem, BitOperations(), choice) == pytest.approx(counted)


def test_of_edges_only_added_bits_count(problem):
    raised = {**problem.named(), ('stem', 'activation'): 16}
    for cost, added in ((BitOperations(), 20 / 80), (MacsAbove(), 0.2)):
        price = cost_of(problem, cost, raised) - cost_of(
            problem, cost, problem.named()
        )
        assert price == pytest.approx(added)


def test_bytes_of_weights(problem):
    choice = {**problem.named(), WEIGHT: 4}
    assert cost_of(problem, WeightBytes(), choice) == 50
    assert cost_of(problem, WeightBytes(relative=True), choice) == 0.5
    assert named_cost('bytes', limit=0.5).unit == 'of 8 bits'
    assert named_cost('bytes', limit=50_000).unit == 'bytes'


@pytest.mark.parametrize(
    ('weight', 'activation', 'expected'),
    [(8, 8, 0), (4, 4, 0), (4, 16, 0.6), ('float', 'float', 0.6)],
)
def test_either_operand_may_be_above(problem, weight, activation, expected):
    choice = {**problem.named(), WEIGHT: weight, INPUT: activation}
    assert cost_of(problem, MacsAbove(), choice) == pytest.approx(expected)


def test_above_is_above_the_bits_of_the_recipe():
    four = build_problem(
        [make_unit('conv', 'weight', num_bits=4)],
        [Product(first=(), second=('conv.weight',), macs=5)],
    )
    assert cost_of(four, MacsAbove(), {WEIGHT: 8}) == 1
    assert cost_of(four, MacsAbove(), {WEIGHT: 4}) == 0


def test_a_table_of_measured_times(problem):
    table = LatencyTable({'conv': {'8x8': 1.0, 'floatx8': 2.5}})
    assert cost_of(problem, table, problem.named()) == 1.0
    choice = {**problem.named(), INPUT: 'float'}
    assert cost_of(problem, table, choice) == 2.5
    with pytest.raises(ValueError, match="no '16x8' for 'conv'"):
        cost_of(problem, table, {**problem.named(), INPUT: 16})


def test_pairs_without_a_time_take_that_of_integers_or_floats(problem):
    table = LatencyTable({'conv': {'8x8': 1.0, 'floatxfloat': 3.0}})
    for bits, expected in ((4, 1.0), (8, 1.0), (16, 3.0), ('float', 3.0)):
        choice = {**problem.named(), INPUT: bits}
        assert cost_of(problem, table, choice) == expected


def test_latency_up_to_one_is_a_share_of_the_float_model(problem):
    table = {'float_ms': 4.0, 'layers': {'conv': {'8x8': 1.0}}}
    for limit, expected, unit in ((0.5, 0.25, 'of float'), (2.0, 1.0, 'ms')):
        cost = named_cost('latency', limit=limit, table=table)
        assert cost_of(problem, cost, problem.named()) == expected
        assert cost.unit == unit


def test_an_input_of_two_layers_counts_in_both():
    shared = Product(first=('a.activation',), second=('a.weight',), macs=1)
    other = Product(first=('a.activation',), second=('b.weight',), macs=1)
    units = [
        make_unit('a', 'activation'),
        make_unit('a', 'weight'),
        make_unit('b', 'weight'),
    ]
    both = build_problem(units, [shared, other])
    table = LatencyTable({'a': {'8x8': 1.0}, 'b': {'8x8': 10.0}})
    assert cost_of(both, table, both.named()) == 11.0


def test_a_price_is_the_difference_of_two_costs(draw):
    problem = draw(3, candidates=(4, 8, 16, 'float'))
    choice = uniform_choice(problem, 8)
    for cost in (BitOperations(), WeightBytes(), MacsAbove()):
        for key, unit in problem.units.items():
            for bits in unit.candidates:
                changed = {**choice, key: bits}
                expected = cost_of(problem, cost, changed) - cost_of(
                    problem, cost, choice
                )
                found = price_of(problem, cost, choice, key=key, bits=bits)
                assert found == pytest.approx(expected, abs=1e-9)


def test_a_product_of_a_tensor_with_itself():
    unit = make_unit('attention', 'query')
    problem = Problem(
        units={unit.key: unit},
        joints=[Joint(first=unit.key, second=unit.key, macs=10)],
    )
    assert cost_of(problem, BitOperations(), {unit.key: 16}) == 4
