"""Which heads count, and how much."""

import pytest

from taskptq.methods.selective_focus.head_selection import (
    HeadSelection,
    MovingAverage,
)

PAPER = {'mask': 0.0, 'reg': 10.0, 'mlp': 4.6}


def test_selection_by_threshold():
    selection = HeadSelection(rho=0.05)
    assert selection.kept(PAPER) == ['reg', 'mlp']
    assert selection.weights(PAPER) == pytest.approx(
        {'mask': 0.0, 'reg': 10 / 14.6, 'mlp': 4.6 / 14.6}
    )
    assert HeadSelection(rho=0.5).kept(PAPER) == ['reg']
    assert HeadSelection(rho=0.45).kept(PAPER) == ['reg', 'mlp']


def test_selection_of_the_top():
    selection = HeadSelection(selection='topk', top_k=1)
    assert selection.weights(PAPER) == {'mask': 0.0, 'reg': 1.0, 'mlp': 0.0}
    assert HeadSelection(selection='topk', top_k=7).kept(PAPER) == [*PAPER]
    equal = dict.fromkeys('abc', 1.0)
    assert HeadSelection(selection='topk', top_k=2).kept(equal) == ['a', 'b']


def test_selection_without_sensitivity():
    third = pytest.approx(dict.fromkeys(PAPER, 1 / 3))
    assert HeadSelection(selection=None).weights(PAPER) == third
    for selection in ('threshold', 'topk'):
        zero = HeadSelection(selection=selection, top_k=1)
        assert zero.weights(dict.fromkeys(PAPER, 0.0)) == third
    weights = HeadSelection(rho=0.5, floor=0.3).weights(PAPER)
    assert weights == pytest.approx({'mask': 0.1, 'reg': 0.8, 'mlp': 0.1})


def test_moving_average():
    average = MovingAverage(0.9)
    assert average.update({'a': 1.0}) == pytest.approx({'a': 1.0})
    assert average.update({'a': 0.0}) == pytest.approx({'a': 0.9})
    assert average.update({'a': 0.9, 'b': 2.0}) == pytest.approx(
        {'a': 0.9, 'b': 2.0}
    )
