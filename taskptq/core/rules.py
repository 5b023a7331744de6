"""Rules for settings: type and range.

A rule reads one value: it returns the value as a plain type, or raises an
error that names the setting, the value and what is allowed.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from taskptq.core.setting_error import SettingError, check_keys, refuse

# Reconstruction multiplies seeds by 1e9, and torch takes 64 bits.
MAX_SEED = (1 << 32) - 1
MAX_PATTERN = 500
# Largest whole number that torch and files can store.
MAX_BITS = 63
_EXPONENT = re.compile(r'[+-]?\d+e[+-]?\d+', re.IGNORECASE)
_PLAIN = re.compile(r'[+-]?\d+(\.\d*)?|true|false|none|null', re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Allowed values of a setting.

    >>> Whole(low=1).read(4, name='steps')
    4
    >>> Whole(low=1).read(0, name='steps')
    Traceback (most recent call last):
    ...
    taskptq.core.setting_error.SettingError: steps=0: give a whole number \
of at least 1

    Args:
        optional: Whether None is allowed as well.
    """

    optional: bool = False

    def read(self, value: Any, *, name: str) -> Any:
        """Return a value as a plain type.

        Args:
            value: Given value.
            name: Dotted name of the setting.

        Raises:
            SettingError: If the value has the wrong type or is out of range.
        """
        if value is None and self.optional:
            return None
        try:
            return self.convert(value, name)
        except SettingError:
            raise
        except (OverflowError, TypeError, ValueError):
            raise refuse(name, value, self.says(value)) from None

    def convert(self, value: Any, name: str) -> Any:
        """Return the plain value, or raise ValueError without a message."""
        raise NotImplementedError

    def allowed(self) -> str:
        """Return the allowed values, worded to follow 'give'."""
        raise NotImplementedError

    def says(self, value: Any) -> str:
        """Return the advice that follows a refused value."""
        other = ', or None' if self.optional else ''
        return f'give {self.allowed()}{other}{_hint(value)}'


def _hint(value: Any) -> str:
    if not isinstance(value, str):
        return ''
    if _EXPONENT.fullmatch(value):
        written = value.lower().replace('e', '.0e')
        return f' (YAML reads {value} as text: write {written})'
    return ' (without quotes)' if _PLAIN.fullmatch(value) else ''


@dataclass(frozen=True, kw_only=True)
class Flag(Rule):
    """True or False, but neither 0 nor 1."""

    def convert(self, value: Any, name: str) -> bool:
        """Return the switch."""
        if not isinstance(value, bool):
            raise TypeError
        return value

    def allowed(self) -> str:
        """Name both."""
        return 'True or False'


@dataclass(frozen=True, kw_only=True)
class _Ranged(Rule):
    """A number within bounds.

    Args:
        low: Least value.
        high: Greatest value.
        above: Values must be greater than this.
        below: Values must be less than this.
    """

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None

    def _check(self, number: float) -> None:
        if (
            (self.low is not None and number < self.low)
            or (self.high is not None and number > self.high)
            or (self.above is not None and number <= self.above)
            or (self.below is not None and number >= self.below)
        ):
            raise ValueError

    def _range(self) -> str:
        if self.low is not None and self.high is not None:
            return f' from {self.low} to {self.high}'
        ends = [
            f'{word} {bound}'
            for word, bound in (
                ('of at least', self.low),
                ('above', self.above),
                ('of at most' if self.above is None else 'at most', self.high),
                ('below', self.below),
            )
            if bound is not None
        ]
        return f' {" and ".join(ends)}' if ends else ''


@dataclass(frozen=True, kw_only=True)
class Whole(_Ranged):
    """A whole number: neither True nor 4.0."""

    def convert(self, value: Any, name: str) -> int:
        """Return the number; NumPy scalars are allowed."""
        if isinstance(value, bool) or not isinstance(value, Integral):
            raise TypeError
        number = int(value)
        if number.bit_length() > MAX_BITS:
            raise ValueError
        self._check(number)
        return number

    def allowed(self) -> str:
        """Name the range."""
        return f'a whole number{self._range()}'

    def says(self, value: Any) -> str:
        """Mention the size limit if the value exceeds it."""
        large = isinstance(value, int) and value.bit_length() > MAX_BITS
        size = f' and at most {MAX_BITS} bits' if large else ''
        return f'{super().says(value)}{size}'


@dataclass(frozen=True, kw_only=True)
class Number(_Ranged):
    """A finite number; whole numbers stay int."""

    def convert(self, value: Any, name: str) -> float:
        """Return the number; NumPy scalars are allowed."""
        if isinstance(value, bool) or not isinstance(value, Real):
            raise TypeError
        number = int(value) if isinstance(value, Integral) else float(value)
        if not math.isfinite(number):
            raise ValueError
        self._check(number)
        return number

    def allowed(self) -> str:
        """Name the range."""
        unbounded = self.high is None and self.below is None
        kind = 'a finite number' if unbounded else 'a number'
        return f'{kind}{self._range()}'


@dataclass(frozen=True, kw_only=True)
class Choice(Rule):
    """One of several values, of the same type.

    Args:
        choices: The values.
    """

    choices: tuple[Any, ...]

    def convert(self, value: Any, name: str) -> Any:
        """Return the choice."""
        for choice in self.choices:
            kind = Integral if isinstance(choice, int) else type(choice)
            if isinstance(value, bool) == isinstance(choice, bool) and (
                isinstance(value, kind) and value == choice
            ):
                return choice
        raise ValueError

    def allowed(self) -> str:
        """List the choices."""
        listed = ', '.join(repr(choice) for choice in self.choices)
        return f'one of {listed}'

    def says(self, value: Any) -> str:
        """List the choices as advice."""
        other = ', or None' if self.optional else ''
        return f'choose {self.allowed()}{other}{_hint(value)}'


@dataclass(frozen=True, kw_only=True)
class Text(Rule):
    """A non-empty string.

    Args:
        path: Also accept a ``Path``, and refuse NUL characters.
        what: Description for messages.
    """

    path: bool = False
    what: str = ''

    def convert(self, value: Any, name: str) -> str:
        """Return the string."""
        if self.path and isinstance(value, os.PathLike):
            value = os.fspath(value)
        if not isinstance(value, str) or not value.strip():
            raise TypeError
        if self.path and '\0' in value:
            raise ValueError
        return str(value)

    def allowed(self) -> str:
        """Describe the string."""
        return self.what or ('a path' if self.path else 'a non-empty string')


@dataclass(frozen=True, kw_only=True)
class Items(Rule):
    """A list or tuple; read as a tuple.

    Args:
        of: Rule of each item.
        what: Description for messages.
        least: Fewest items.
        most: Most items.
    """

    of: Rule
    what: str = 'a list'
    least: int = 0
    most: int = 1000

    def convert(self, value: Any, name: str) -> tuple[Any, ...]:
        """Return the items."""
        if isinstance(value, str | bytes) or not isinstance(value, Sequence):
            raise TypeError
        if not self.least <= len(value) <= self.most:
            raise refuse(
                name,
                value,
                f'give {self.least} to {self.most} items, not {len(value)}',
            )
        return tuple(
            self.of.read(item, name=f'{name}[{number}]')
            for number, item in enumerate(value)
        )

    def allowed(self) -> str:
        """Describe the list."""
        return self.what


@dataclass(frozen=True, kw_only=True)
class Pattern(Rule):
    """A name pattern: shell style, or a regex after the prefix ``re:``."""

    def convert(self, value: Any, name: str) -> str:
        """Return the pattern if it compiles."""
        if not isinstance(value, str) or not value.strip():
            raise TypeError
        if len(value) > MAX_PATTERN:
            raise ValueError
        if value.startswith('re:'):
            try:
                re.compile(value[3:])
            except (RecursionError, re.error) as error:
                said = f'give a regular expression after re: ({error})'
                raise refuse(name, value, said) from None
        return str(value)

    def allowed(self) -> str:
        """Describe the pattern."""
        return f'a name pattern of 1 to {MAX_PATTERN} characters'


def patterns(*, optional: bool = False) -> Items:
    """Return the rule for a list of name patterns."""
    return Items(
        of=Pattern(),
        what='a list of name patterns',
        optional=optional,
    )


@dataclass(frozen=True, kw_only=True)
class Table(Rule):
    """A dict; read as a plain dict.

    Args:
        of: Rule of each value; None allows anything.
        keys: Allowed keys; empty allows any string.
        required: Required keys.
    """

    of: Rule | None = None
    keys: tuple[str, ...] = ()
    required: tuple[str, ...] = ()

    def convert(self, value: Any, name: str) -> dict[str, Any]:
        """Return the dict."""
        if not isinstance(value, Mapping):
            raise TypeError
        if self.keys:
            check_keys(value, self.keys, name=name)
        if not all(isinstance(key, str) for key in value):
            raise refuse(name, value, 'give a dict whose keys are strings')
        for key in self.required:
            if key not in value:
                raise refuse(name, value, f'give the key {key!r} as well')
        if self.of is None:
            return dict(value)
        return {
            str(key): self.of.read(item, name=f'{name}.{key}')
            for key, item in value.items()
        }

    def allowed(self) -> str:
        """Name the keys."""
        return f'a dict of {", ".join(self.keys)}' if self.keys else 'a dict'


@dataclass(frozen=True, kw_only=True)
class Subclass(Rule):
    """A subclass.

    Args:
        base: The class to derive from.
    """

    base: type

    def convert(self, value: Any, name: str) -> type:
        """Return the class."""
        if not (isinstance(value, type) and issubclass(value, self.base)):
            raise TypeError
        return value

    def allowed(self) -> str:
        """Name the base class."""
        return f'a subclass of {self.base.__name__}'


SEED = Whole(low=0, high=MAX_SEED)
