"""Rules of settings: plain values out, one sentence for the rest."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from taskptq.core.settings import (
    Choice,
    Flag,
    Items,
    Number,
    SettingError,
    Subclass,
    Table,
    Text,
    Whole,
    patterns,
)


@pytest.mark.parametrize(
    ('rule', 'value', 'read'),
    [
        (Whole(), np.int64(3), 3),
        (Whole(optional=True), None, None),
        (Number(), 1, 1),
        (Number(), np.float32(0.5), 0.5),
        (Number(), np.float64(0.1), 0.1),
        (Number(), Fraction(1, 2), 0.5),
        (Flag(), False, False),
        (Choice(choices=('a', 1)), 1, 1),
        (Choice(choices=(1, 2)), np.int32(2), 2),
        (Text(path=True), Path('a/b'), 'a/b'),
        (patterns(), ['a*', 're:b'], ('a*', 're:b')),
        (Items(of=Whole()), (np.int8(1), 2), (1, 2)),
        (Table(of=Whole()), {'a': np.int8(1)}, {'a': 1}),
        (Subclass(base=int), bool, bool),
    ],
)
def test_reads_plain_values(rule, value, read):
    found = rule.read(value, name='x')
    assert found == read
    assert type(found) is type(read)


@pytest.mark.parametrize(
    ('rule', 'value', 'said'),
    [
        (Whole(), True, 'x=True: give a whole number'),
        (Whole(), 4.0, 'x=4.0: give a whole number'),
        (Whole(low=1, high=8), 9, 'x=9: give a whole number from 1 to 8'),
        (
            Whole(low=1),
            1 << 63,
            'x=9223372036854775808: give a whole number of at least 1 and at '
            'most 63 bits',
        ),
        (
            Number(above=0, high=1),
            0,
            'x=0: give a number above 0 and at most 1',
        ),
        (
            Number(low=0, below=1),
            1,
            'x=1: give a number of at least 0 and below 1',
        ),
        (Number(), float('nan'), 'x=nan: give a finite number'),
        (Number(), 10**400, 'x=1000000'),
        (Number(), 1j, 'x=1j'),
        (
            Number(),
            '1e-3',
            "x='1e-3': give a finite number (YAML reads 1e-3 as text: write "
            '1.0e-3)',
        ),
        (
            Number(optional=True),
            '4',
            "x='4': give a finite number, or None (without quotes)",
        ),
        (Flag(), 'False', "x='False': give True or False (without quotes)"),
        (Flag(), 1, 'x=1: give True or False'),
        (Choice(choices=(1, 2)), True, 'x=True: choose one of 1, 2'),
        (Choice(choices=(1, 2)), 1.0, 'x=1.0'),
        (
            Choice(choices=('a', 'b'), optional=True),
            [],
            "x=[]: choose one of 'a', 'b', or None",
        ),
        (Text(path=True), 'a\0b', "x='a\\x00b': give a path"),
        (patterns(), 'a*', "x='a*': give a list of name patterns"),
        (patterns(), b'a*', "x=b'a*': give a list"),
        (patterns(), ['re:('], "x[0]='re:(': give a regular expression"),
        (Items(of=Whole(), least=1), [], 'x=[]: give 1 to 1000 items, not 0'),
        (
            Table(keys=('steps',)),
            {'stpes': 1},
            "x has unknown key 'stpes' (did you mean 'steps'?): known are "
            'steps',
        ),
        (Table(required=('a',)), {}, "x={}: give the key 'a' as well"),
        (Subclass(base=int), str, "x=<class 'str'>: give a subclass of int"),
    ],
)
def test_refuses_in_one_sentence(rule, value, said):
    with pytest.raises(SettingError) as caught:
        rule.read(value, name='x')
    assert str(caught.value).startswith(said)
