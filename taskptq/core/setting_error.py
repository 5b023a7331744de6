"""Errors of settings: one sentence with name, value and allowed values."""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any


class SettingError(ValueError):
    """An invalid setting.

    Args:
        name: Dotted name, e.g. ``reconstruction.weight_lr``.
        problem: Rest of the message: the value and what is allowed.
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
        """Show only the size of numbers that Python refuses to print."""
        if x.bit_length() > 4096:
            return f'<whole number of {x.bit_length()} bits>'
        return super().repr_int(x, level)


_SHOWN = _Shown()


def shown(value: Any) -> str:
    """Return a value's repr, on one line and not too long."""
    return ' '.join(_SHOWN.repr(value).split())


def refuse(name: str, value: Any, allowed: str) -> SettingError:
    """Return the error ``name=value: allowed``.

    >>> str(refuse('spec.num_bits', 9, 'give 2 to 8 bits'))
    'spec.num_bits=9: give 2 to 8 bits'
    """
    return SettingError(name, f'={shown(value)}: {allowed}')


@contextmanager
def within(owner: str) -> Iterator[None]:
    """Prefix the names of settings in errors with their owner's.

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
    """Refuse anything but a dict of known keys.

    Args:
        given: The dict.
        known: Allowed keys, in the order of the message.
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
    """Return the message for an unknown key, with the nearest known one.

    >>> unknown_key('stepz', ['rounding', 'steps'])
    " has unknown key 'stepz' (did you mean 'steps'?): known are rounding, \
steps"
    """
    # Comparing takes quadratic time, and long keys aren't typos.
    near = difflib.get_close_matches(str(key)[:100], known, n=1)
    guess = f' (did you mean {near[0]!r}?)' if near else ''
    listed = ', '.join(known) if known else 'none'
    return f' has unknown key {shown(key)}{guess}: known are {listed}'
