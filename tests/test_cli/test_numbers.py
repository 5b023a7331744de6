"""Numeric options of the tools end in one sentence."""

import argparse
import importlib

import pytest


@pytest.fixture
def numbers():
    return importlib.import_module('taskptq.cli.numbers')


@pytest.mark.parametrize(
    ('kind', 'text', 'said'),
    [
        ('count', '0', "'0': give a whole number of at least 1"),
        ('count', '-3', "'-3'"),
        ('count', '2.0', "'2.0'"),
        ('count', '', "''"),
        ('seed', '-1', "'-1': give a whole number of at least 0 and at most"),
        ('seed', '4294967296', 'at most 4294967295'),
        ('bits', '9', 'at least 2 and at most 8'),
        ('share', 'nan', 'give a number of at least 0 and at most 1'),
        ('share', '1.1', "'1.1'"),
        ('minutes', 'inf', "'inf'"),
        ('minutes', '-1', 'give a number of at least 0$'),
    ],
)
def test_refused(numbers, kind, text, said):
    with pytest.raises(numbers.argparse.ArgumentTypeError, match=said):
        getattr(numbers, kind)(text)


def test_read(numbers):
    assert numbers.count('3') == 3
    assert numbers.seed('0') == 0
    assert numbers.share('0.5') == 0.5
    assert numbers.budget('bytes=4e5') == ('bytes', 400000.0)


@pytest.mark.parametrize('text', ['bops', '=0.5', 'bops=', 'bops=-1'])
def test_what_is_no_budget(numbers, text):
    with pytest.raises(argparse.ArgumentTypeError):
        numbers.budget(text)


@pytest.mark.parametrize(
    'option', [['--num-images', '0'], ['--steps', '-1'], ['--batch-size', 'x']]
)
def test_a_tool_stops_with_the_sentence(
    option, capsys, monkeypatch, repo_root
):
    monkeypatch.syspath_prepend(str(repo_root / 'tools'))
    tool = importlib.import_module('benchmarks.__main__')
    with pytest.raises(SystemExit):
        tool.parse_args(['memory', *option])
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert option[0] in last
    assert f'{option[1]!r}: give a whole number of at least 1' in last


def test_largest_seed_is_that_of_the_settings(numbers):
    from taskptq.core.settings import SEED

    assert SEED.high == numbers.MAX_SEED
