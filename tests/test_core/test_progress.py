"""Progress of loops: lines without a terminal, one display with one."""

import logging

import pytest
import torch

from taskptq.core import progress
from taskptq.core.progress import Progress, listening


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setattr(progress, 'is_live', lambda: True)
    monkeypatch.setenv('TERM', 'xterm')


def run(steps=4, **options):
    with Progress('calibrate', total=steps, **options) as shown:
        for _ in range(steps):
            shown.advance()


def test_a_line_at_the_end_without_a_terminal(capfd, caplog):
    with caplog.at_level(logging.INFO, logger='taskptq'):
        run()
    assert capfd.readouterr() == ('', '')
    assert [r.message for r in caplog.records] == ['calibrate: 4/4 in 0 s']


def test_lines_of_a_long_loop_tell_the_time_left(monkeypatch, caplog):
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr(progress.time, 'perf_counter', lambda: next(clock))
    with caplog.at_level(logging.INFO, logger='taskptq'):
        run()
    assert caplog.records[0].message == (
        'calibrate: 2/4, 40 s elapsed, about 40 s left'
    )


def test_no_lines_if_not_wanted(caplog):
    with caplog.at_level(logging.INFO, logger='taskptq'):
        run(lines=False)
    assert not caplog.records


def test_loops_inside_each_other_share_one_display(terminal, capsys):
    with Progress('outer', total=2) as outer:
        display = Progress._display
        assert display is not None
        with Progress('inner', total=1) as inner:
            assert Progress._display is display
            inner.advance(loss=torch.tensor(0.25))
        outer.advance()
        assert Progress._display is display
    assert Progress._display is None
    assert Progress._users == 0
    assert 'outer' in ''.join(capsys.readouterr())


def test_the_display_closes_after_an_error(terminal):
    with pytest.raises(ValueError, match='broken'), Progress('x', total=1):
        raise ValueError('broken')
    assert Progress._display is None


def test_a_name_with_brackets_is_shown_as_it_is(terminal, capsys):
    with Progress('unit', total=1, parts=1) as shown:
        shown.start_part(0, '[red]layer[/red]')
        shown.advance()
        Progress._display.refresh()
    assert '[red]layer[/red]' in ''.join(capsys.readouterr())


def test_listeners_hear_each_part_and_its_loss():
    heard = []
    with (
        listening(heard.append),
        Progress('unit', total=6, parts=3) as shown,
    ):
        for index, name in enumerate(('stem', 'body', 'head')):
            shown.start_part(index, name)
            shown.advance(2, loss=torch.tensor(index / 2))
    assert [(part.part, part.loss) for part in heard] == [
        ('stem', 0.0),
        ('body', 0.5),
        ('head', 1.0),
    ]
    assert {(part.title, part.count) for part in heard} == {('unit', 3)}
    assert not progress._listeners


def fail_in_a_part():
    with Progress('unit', total=1, parts=1) as shown:
        shown.start_part(0, 'stem')
        raise ValueError('no')


def test_a_part_that_failed_is_not_reported():
    heard = []
    with listening(heard.append), pytest.raises(ValueError, match='no'):
        fail_in_a_part()
    assert heard == []


def test_a_line_for_each_part_names_its_loss(caplog):
    with (
        caplog.at_level(logging.INFO, logger='taskptq'),
        Progress('unit', total=2, parts=2) as shown,
    ):
        shown.start_part(0, 'stem')
        shown.advance(loss=0.5)
        shown.start_part(1, 'head')
        shown.advance()
    assert [record.message for record in caplog.records] == [
        'unit 1/2 stem: loss 0.5, 0 s elapsed, about 0 s left',
        'unit 2/2 head: 0 s elapsed, about 0 s left',
    ]
