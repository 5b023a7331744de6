"""The error of settings: one sentence with name, value and what is allowed."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any


class SettingError(ValueError):
    """A setting that cannot be.

    Args:
        name: Dotted name, e.g. ``reconstruction.weight_lr``.
        problem: What follows the name: the value and what is allowed.
    """

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(name, problem)
        self.name = name
        self.problem = problem

    def __str__(self) -> str:
        return f'{self.name}{self.problem}'


class _Shown(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = 100
        self.maxlevel = 3

    def repr_int(self, x: int, level: int) -> str:
        """Show the size of numbers whose digits Python refuses to print."""
        if x.bit_length() > 4096:
            return f'<whole number of {x.bit_length()} bits>'
        return super().repr_int(x, level)


_SHOWN = _Shown()


def shown(value: Any) -> str:
    """Return a value as Python writes it, in one line and not too long."""
    return ' '.join(_SHOWN.repr(value).split())


def refuse(name: str, value: Any, allowed: str) -> SettingError:
    """Return the error of a value: ``name=value: allowed``.

    >>> str(refuse('spec.num_bits', 9, 'give 2 to 8 bits'))
    'spec.num_bits=9: give 2 to 8 bits'
    """
    return SettingError(name, f'={shown(value)}: {allowed}')


@contextmanager
def within(owner: str) -> Iterator[None]:
    """Put the owner's name in front of the names of settings.

    >>> with within('qconfig.weight'):
    ...     raise refuse('num_bits', 9, 'give 2 to 8 bits')
    Traceback (most recent call last):
    ...
    taskptq.core.setting_error.SettingError: qconfig.weight.num_bits=9: give \
2 to 8 bits
    """
    try:
        yield
    except SettingError as error:
        name = f'{owner}.{error.name}' if error.name else owner
        raise SettingError(name, error.problem) from error.__cause__


def check_keys(given: Any, known: Iterable[str], *, name: str) -> None:
    """Refuse what is not a dict, and keys that nobody reads.

    Args:
        given: The dict.
        known: Its possible keys, in the order in which to list them.
        name: Dotted name of the dict.

    Raises:
        SettingError: Naming the first unknown key and the nearest known one.
    """
    known = list(known)
    if not isinstance(given, Mapping):
        listed = ', '.join(known)
        raise refuse(name, given, f'give a dict; its keys may be {listed}')
    for key in given:
        if key not in known:
            raise SettingError(name, unknown_key(key, known))


def unknown_key(key: Any, known: Sequence[str]) -> str:
    """Say that a key is unknown, and which known one is nearest.

    >>> unknown_key('stepz', ['rounding', 'steps'])
    " has unknown key 'stepz' (did you mean 'steps'?): known are rounding, \
steps"
    """
    # Long keys cost quadratic time to compare, and are not typos.
    near = difflib.get_close_matches(str(key)[:100], known, n=1)
    guess = f' (did you mean {near[0]!r}?)' if near else ''
    listed = ', '.join(known) if known else 'none'
    return f' has unknown key {shown(key)}{guess}: known are {listed}'
