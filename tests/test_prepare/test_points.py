"""Settings of points: defaults, inheritance and overrides as plain dicts."""

import pytest

from taskptq.core.settings import SettingError
from taskptq.prepare.points import (
    DEFAULTS,
    HEADED,
    POINTS,
    at_least,
    check_overrides,
    complete_points,
    merge,
    overridden,
    plain,
    written,
)

PERCENTILE = {'type': 'PercentileObserver', 'percentile': 99.9}


def test_nothing_given_is_the_defaults():
    points = complete_points({})
    assert tuple(points) == POINTS
    assert points['weight'] == DEFAULTS['weight']
    assert all(points[name] == DEFAULTS['activation'] for name in HEADED)


def test_operands_inherit_from_attention_and_that_from_activations():
    points = complete_points(
        {
            'activation': {'num_bits': 4, 'observer': PERCENTILE},
            'attention': {'num_bits': 6},
            'key': {'num_bits': 7},
        }
    )
    bits = {name: settings['num_bits'] for name, settings in points.items()}
    assert bits == {
        'weight': 8,
        'activation': 4,
        'attention': 6,
        'query': 6,
        'key': 7,
        'value': 6,
        'softmax': 4,
    }
    observers = [points[name]['observer'] for name in ('key', 'softmax')]
    assert observers == [PERCENTILE, PERCENTILE]


def test_false_leaves_a_point_float_until_settings_come_back():
    points = complete_points({'attention': False, 'value': {'num_bits': 5}})
    assert points['query'] is False
    assert points['value'] == {**DEFAULTS['activation'], 'num_bits': 5}


def test_another_type_drops_the_arguments_of_the_first():
    first = {**DEFAULTS['activation'], 'type': 'A', 'step': 3, 'num_bits': 4}
    assert merge(first, {'type': 'A', 'num_bits': 5})['step'] == 3
    second = merge(first, {'type': 'B'})
    assert 'step' not in second
    assert second['num_bits'] == 4


def test_another_observer_drops_the_settings_of_the_first():
    first = {**DEFAULTS['activation'], 'observer': PERCENTILE}
    same = merge(first, {'observer': {'percentile': 90}})
    assert same['observer'] == {**PERCENTILE, 'percentile': 90}
    other = merge(first, {'observer': {'type': 'MSEObserver'}})
    assert other['observer'] == {'type': 'MSEObserver'}
    assert first['observer'] == PERCENTILE


def test_attention_of_an_override_reaches_the_operands_first():
    points = complete_points({})
    changed = overridden(
        points, {'attention': {'num_bits': 4}, 'key': {'num_bits': 6}}
    )
    assert changed['query']['num_bits'] == 4
    assert changed['key']['num_bits'] == 6
    assert changed['softmax'] == points['softmax']
    assert points['query']['num_bits'] == 8


@pytest.mark.parametrize(
    ('override', 'message'),
    [
        ({'weight': {}}, 'pattern of layer names'),
        ({'pattern': 're:('}, r'overrides\[0\]\.pattern'),
        ({'pattern': 'a', 'weights': {}}, 'weights'),
        ({'pattern': 'a', 'weight': 4}, r'overrides\[0\]\.weight=4'),
    ],
)
def test_override_of_a_wrong_shape(override, message):
    with pytest.raises(SettingError, match=message):
        check_overrides([override])


def test_at_least_some_bits():
    settings = {'num_bits': 4, 'symmetric': True}
    assert at_least(settings, 8) == {'num_bits': 8, 'symmetric': True}
    assert at_least(settings, 2) == settings
    assert at_least(False, 8) is False


def test_plain_dicts_and_text():
    assert plain({1: (2, {'a': [3]})}) == {'1': [2, {'a': [3]}]}
    assert written({'a': 1}) == "{'a': 1}"
    assert written(10**5000).startswith('unwritable ')
