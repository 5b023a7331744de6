from dataclasses import replace

import pytest
from torch import nn
from wild_points import make_point, make_report

from taskptq.analysis.sensitivity import RoleSensitivity
from taskptq.analysis.sensitivity.sentences import (
    cure_of,
    cure_of_input,
    describe,
)


def test_the_worst_tensor_and_the_best_role():
    report = make_report(
        {'a': 0.9, 'b': 0.06, 'c': 0.04},
        total=1.0,
        roles=(
            RoleSensitivity(
                role='big', num_points=9, macs=99, alone=1.0, others=0.19
            ),
            RoleSensitivity(
                role='small', num_points=2, macs=1, alone=0.9, others=0.2
            ),
        ),
        notes=['A note.'],
    )
    first, second, role, note = report.sentences()
    assert first.startswith('One tensor costs 90 % of the loss: input of a;')
    assert 'its peak is 46 standard deviations' in first
    assert second.startswith('One tensor costs 6 % of the loss: input of b')
    # The cheapest role of those that give back about as much.
    assert role == (
        "Left float, all 2 tensors of role 'small' would give back 80 % of "
        'the loss.'
    )
    assert note == 'A note.'
    assert len(report.sentences(most=1)) == 3


@pytest.mark.parametrize(
    ('estimator', 'expected'),
    [
        ('gradient', 'takes AP from 0.174 to 0.269 (float: 0.281).'),
        ('alone', 'takes AP from 0.281 to 0.269.'),
    ],
)
def test_the_metric_is_told(estimator, expected):
    report = replace(
        make_report({'a': 1.0}),
        estimator=estimator,
        metric='AP',
        metric_float=0.281,
        metric_quant=0.174,
    )
    assert 'AP' not in report.sentences()[0]
    report.points = [replace(report.points[0], metric=0.269)]
    assert report.sentences()[0].endswith(expected)


def test_many_small_losses():
    report = make_report({f'l{i}': 0.01 for i in range(30)})
    assert report.sentences() == [
        'No single tensor costs 5 % of the loss: it is spread over 30 tensors.'
    ]


def test_nothing_is_lost():
    assert make_report({}).sentences() == make_report({'a': 0.0}).sentences()


@pytest.mark.parametrize(
    ('fields', 'cure'),
    [
        ({}, 'activation=dict(per_channel=True)'),
        (
            {'per_channel': True},
            "overrides=[dict(pattern='a', activation=dict(num_bits=16))]",
        ),
        (
            {'role': 'linear input', 'num_bits': 4},
            "overrides=[dict(pattern='a', activation=dict(num_bits=8))]",
        ),
        (
            {'role': 'attention operand', 'point': 'key'},
            "overrides=[dict(pattern='a', key=dict(num_bits=16))]",
        ),
        (
            {'role': 'weight', 'point': 'weight'},
            'a recipe that optimizes the rounding of weights, such as _gptq',
        ),
    ],
)
def test_cures(fields, cure):
    assert cure_of(make_point('a', **fields)) == cure


def test_cures_of_layers():
    depthwise, dense = nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 3)
    settings = {'point': 'activation', 'per_channel': False}
    assert 'per_channel' in cure_of_input('a', depthwise, **settings)
    assert 'num_bits=16' in cure_of_input('a', dense, **settings)
    assert 'num_bits=16' in cure_of_input('a', None, **settings)


def test_an_ordinary_peak_is_no_news():
    calm = replace(make_point('a'), peak_to_std=5.0)
    assert 'peak' not in describe(calm)
