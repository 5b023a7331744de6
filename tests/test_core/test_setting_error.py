"""The error of settings: name, value and what is allowed."""

import pickle

import numpy as np
import pytest

from taskptq.core.settings import (
    Flag,
    SettingError,
    check_keys,
    shown,
    unknown_key,
    within,
)


def test_errors_survive_another_process():
    error = SettingError('a.b', '=1: give 2')
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == 'a.b=1: give 2'
    assert (again.name, again.problem) == ('a.b', '=1: give 2')


def test_owners_go_in_front():
    with (
        pytest.raises(SettingError, match=r'^a\.b\.c=1: give'),
        within('a'),
        within('b'),
    ):
        Flag().read(1, name='c')


def test_what_is_not_a_dict_has_no_keys():
    with pytest.raises(SettingError, match=r"x='ab': give a dict.*may be a"):
        check_keys('ab', ['a'], name='x')


def test_long_values_are_shortened():
    assert shown(10**5000) == '<whole number of 16610 bits>'
    assert len(shown('a' * 10**6)) < 120
    assert len(shown(list(range(10**5)))) < 120
    assert '\n' not in shown(np.zeros((3, 3)))


def test_nearest_key_is_suggested():
    said = unknown_key('stepz', ['rounding', 'steps'])
    assert "'stepz'" in said
    assert "'steps'" in said
    assert 'did you mean' not in unknown_key('zzz', ['rounding', 'steps'])
    # A key of megabytes is neither compared nor printed whole.
    assert len(unknown_key('a' * 10**7, ['steps'])) < 300


def test_keys_are_checked_in_order():
    check_keys({'a': 1}, ['a', 'b'], name='x')
    with pytest.raises(SettingError, match=r"^x has unknown key 'c'"):
        check_keys({'a': 1, 'c': 2, 'd': 3}, iter(['a', 'b']), name='x')
