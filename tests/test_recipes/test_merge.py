"""Merging of settings."""

import pytest

from taskptq.recipes import merge

BASE = {'loss': {'type': 'A', 'tau': 1}, 'steps': 3, 'parts': [1, 2]}


@pytest.mark.parametrize(
    ('changes', 'expected'),
    [
        ({'steps': 4}, {**BASE, 'steps': 4}),
        ({'loss': {'tau': 2}}, {**BASE, 'loss': {'type': 'A', 'tau': 2}}),
        (
            {'loss': {'_delete_': True, 'type': 'B'}},
            {**BASE, 'loss': {'type': 'B'}},
        ),
        (
            {'loss': {'_delete_': False, 'tau': 2}},
            {**BASE, 'loss': {'type': 'A', 'tau': 2}},
        ),
        ({'loss': None}, {**BASE, 'loss': None}),
        ({'parts': [3]}, {**BASE, 'parts': [3]}),
        # What replaces a number, or adds a key, may hold _delete_ as well.
        (
            {'steps': {'_delete_': True, 'low': {'_delete_': True, 'a': 1}}},
            {**BASE, 'steps': {'low': {'a': 1}}},
        ),
    ],
)
def test_merges_as_mm_configs_do(changes, expected):
    assert merge(BASE, changes) == expected


def test_what_is_merged_shares_nothing():
    changes = {'parts': [[5]], 'new': {'list': [1]}}
    merged = merge(BASE, changes)
    merged['loss']['tau'] = 9
    merged['parts'][0].append(6)
    merged['new']['list'].append(2)
    assert BASE['loss']['tau'] == 1
    assert changes == {'parts': [[5]], 'new': {'list': [1]}}
