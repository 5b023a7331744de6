"""Notes of a row: what was resumed, undone or rewritten, or nothing."""

import pytest

from taskptq.bench.row_notes import (
    reconstruction_seconds,
    resume_note,
    rewrite_notes,
    set_loss_note,
)


@pytest.mark.parametrize(
    ('report', 'seconds'),
    [
        ({}, 0),
        ({'seconds': 1.234}, 1.23),
        ({'seconds': 1.5, 'resumed_seconds': 2.25}, 3.75),
    ],
)
def test_seconds_count_resumed_units(report, seconds):
    assert reconstruction_seconds(report) == seconds


def test_resumed_units_are_told():
    assert resume_note({'resumed_units': 0, 'resumed_seconds': 9.0}) == {}
    note = resume_note({'resumed_units': 3, 'resumed_seconds': 61.7})['note']
    assert note.startswith('3 units')
    assert '62 s' in note


def test_loss_of_the_set_is_that_of_the_last_unit():
    last = {'set_loss_start': 0.5, 'set_loss_end': 0.6, 'taken_back': True}
    first = {'set_loss_start': None}
    expected = {'start': 0.5, 'end': 0.6, 'taken_back': True}
    assert set_loss_note({'units': [first, last]}) == {
        'network_set_loss': expected
    }
    assert set_loss_note({'units': [last, first]}) == {}
    assert set_loss_note({}) == {}


def test_only_what_there_is_is_noted():
    softmax = {'a': {'tau': [2]}}
    report = {'rewrites': [], 'calibration': {'softmax': softmax}}
    assert rewrite_notes(report) == {'softmax': softmax}
    report = {'rewrites': [{'rewrite': 'A'}], 'calibration': {}}
    assert rewrite_notes(report) == {'rewrites': [{'rewrite': 'A'}]}
