"""Values of a file in messages: short, on one line, and never run."""

import pytest

from taskptq.export.errors import (
    DamagedFileError,
    FileError,
    NotPlainFileError,
    shown,
)


class Loud:
    """Prints itself, which no message may do with a file's object."""

    def __repr__(self):
        raise AssertionError('a repr of the file was run')


@pytest.mark.parametrize(
    ('value', 'text'),
    [
        ('a\nb', r"'a\nb'"),
        (b'\0', r"b'\x00'"),
        (None, 'None'),
        (3.5, '3.5'),
        (True, 'True'),
        (1 << 2000, 'a huge number'),
        ([1, 'a', (2,)], "[1, 'a', tuple]"),
        (list(range(20)), '[0, 1, 2, 3, 4, 5, 6, 7, ...]'),
        ({'a': Loud()}, 'dict'),
        (Loud(), 'Loud'),
        ([Loud()], '[Loud]'),
    ],
)
def test_forms(value, text):
    assert shown(value) == text


@pytest.mark.parametrize(
    'value', ['x' * 10**7, b'x' * 10**7, ['x' * 10**6] * 10**4]
)
def test_long_values_are_cut(value):
    assert len(shown(value)) <= 80
    assert shown(value).endswith('...')


def test_a_list_within_itself_ends():
    circular = [1]
    circular.append(circular)
    assert shown(circular) == '[1, list]'


def test_both_kinds_are_file_errors():
    assert issubclass(DamagedFileError, FileError)
    assert issubclass(NotPlainFileError, FileError)
    assert not issubclass(DamagedFileError, NotPlainFileError)
