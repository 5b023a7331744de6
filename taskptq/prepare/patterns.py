"""Name patterns of layers: shell style, or regular with the prefix re:.

Patterns may come from a file. Regular ones therefore have no repeats within
repeats, which take exponential memory in any backtracking engine; what could
still be slow runs in an engine with a limit on its time.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterable
from fnmatch import translate
from functools import lru_cache

import regex

MAX_LENGTH = 500
MAX_PATTERNS = 1000
MAX_REPEAT = 100
MAX_GROUPS = 20
# Up to 2^CHEAP steps for a name of at most CHEAP_LETTERS: re may run it, which
# has no limit on its time and is three times as fast.
CHEAP = 25.0
CHEAP_LETTERS = 250
# Seconds: for one match, for a series of them, and what is free of charge.
MATCH_SECONDS = 0.5
SERIES_SECONDS = 5.0
FREE_SECONDS = 5e-6
# Seconds of a series that each second of waiting gives back.
REFILL = 0.1

_COUNT = re.compile(r'\{(\d*)(,?)(\d*)\}')
_CLASS = re.compile(r'\[\^?\]?(?:\\.|[^\]\\])*\]', re.DOTALL)
_FLAGS = re.compile(r'\(\?[a-zA-Z]*x')


def matches(name: str, pattern: str) -> bool:
    r"""Whether a qualified name matches a pattern, as a whole.

    Args:
        name: Name of a layer.
        pattern: Shell style, or a regular expression after ``re:``.

    Raises:
        ValueError: If the pattern is too long, does not compile, or takes
            too much time.

    >>> matches('backbone.layer4.0.conv1', 'backbone.layer4*')
    True
    >>> matches('head.fc', r're:head\.(fc|conv)')
    True
    """
    return _matcher(pattern)(name)


def check_patterns(patterns: Iterable[str], *, argument: str) -> None:
    """Refuse patterns that cannot be used, before any of them is.

    Raises:
        ValueError: Naming the argument; if there are too many, or one is too
            long, does not compile or could take exponential time.
    """
    patterns = list(patterns)
    if len(patterns) > MAX_PATTERNS:
        raise ValueError(
            f'{argument} has {len(patterns):,} patterns; at most '
            f'{MAX_PATTERNS:,} are possible'
        )
    for pattern in patterns:
        try:
            _matcher(pattern)
        except ValueError as error:
            raise ValueError(f'{argument}: {error}') from error


def check_all_used(
    patterns: Iterable[str], names: Iterable[str], *, argument: str
) -> None:
    """Refuse patterns that match nothing: a typo must not pass silently.

    Raises:
        ValueError: Naming the argument, the pattern and some layer names.
    """
    patterns, names = list(patterns), list(names)
    check_patterns(patterns, argument=argument)
    for pattern in patterns:
        if not any(matches(name, pattern) for name in names):
            some = ', '.join(names[:5])
            raise ValueError(
                f'{argument}: pattern {pattern!r} matches no layer of the '
                f'model (layers are called {some}, ...)'
            )


@lru_cache(maxsize=4 * MAX_PATTERNS)
def _matcher(pattern: str) -> Callable[[str], bool]:
    """Compile a pattern once."""
    if not isinstance(pattern, str):
        raise ValueError(f'pattern {pattern!r:.80} is not a text')
    if len(pattern) > MAX_LENGTH:
        raise ValueError(
            f'pattern {pattern[:40]!r}... has {len(pattern):,} letters; at '
            f'most {MAX_LENGTH} are possible'
        )
    if pattern.startswith('re:'):
        return _regular(pattern)
    # Each star becomes a lookahead or atomic group: no backtracking.
    shell = re.compile(translate(pattern)).match
    return lambda name: shell(name) is not None


def _regular(pattern: str) -> Callable[[str], bool]:
    expression = pattern[3:]
    scan = _Scan()
    problem = scan.run(expression)
    if problem:
        raise ValueError(f'pattern {pattern!r} has {problem}: simplify it')
    try:
        # A pattern must be one that the standard library reads, too.
        quick = re.compile(expression).fullmatch
        compiled = regex.compile(expression, regex.VERSION0)
    except (re.error, regex.error, OverflowError, RecursionError) as error:
        raise ValueError(
            f'pattern {pattern!r} is not a regular expression: {error}'
        ) from error
    limited, clock, charge = compiled.fullmatch, time.perf_counter, _charge
    letters = CHEAP_LETTERS if scan.cost <= CHEAP else -1

    def match(name: str) -> bool:
        start = clock()
        try:
            if len(name) <= letters:
                found = quick(name) is not None
            else:
                found = limited(name, timeout=MATCH_SECONDS) is not None
        except (TimeoutError, MemoryError) as error:
            raise _too_slow(pattern, name) from error
        spent = clock() - start
        if spent > FREE_SECONDS and not charge(spent):
            raise _too_slow(pattern, name)
        return found

    return match


def _too_slow(pattern: str, name: str) -> ValueError:
    return ValueError(
        f'pattern {pattern!r} takes too long to match {name[:80]!r}: simplify '
        'it (fewer stars, no alternatives that overlap)'
    )


class _Budget:
    """Seconds left for slow matches; waiting refills it."""

    def __init__(self) -> None:
        self.left = SERIES_SECONDS
        self.last = time.monotonic()

    def charge(self, seconds: float) -> bool:
        """Take seconds from the budget; False if it is used up."""
        now = time.monotonic()
        gained = (now - self.last) * REFILL
        self.left = min(SERIES_SECONDS, self.left + gained) - seconds
        self.last = now
        if self.left < 0:
            self.left = SERIES_SECONDS  # for whoever asks next
            return False
        return True


_charge = _Budget().charge


class _Scan:
    """Goes through an expression and judges its repeats.

    Attributes:
        cost: Logarithm (base 2) of the steps that it may take.
    """

    def __init__(self) -> None:
        self.cost = 0.0
        # For each open group: whether it holds a repeat, its alternatives.
        self.groups: list[tuple[bool, int]] = [(False, 1)]

    def run(self, expression: str) -> str:
        """Say why it could take exponential memory; empty if not."""
        if _FLAGS.search(expression):
            return 'the flag x'
        at = 0
        while at < len(expression):
            closes = expression[at] == ')'
            repeats, step = self._atom(expression, at)
            if not step:
                return (
                    f'more than {MAX_GROUPS} groups in each other, or a ] or '
                    ') of none'
                )
            at += step
            most, step = _quantifier(expression, at)
            at += step
            if MAX_REPEAT < most < _ENDLESS:
                return f'a repeat of more than {MAX_REPEAT}'
            if most > 1 and repeats:
                return 'a repeat within a repeat'
            self._count(most, closes=closes, quantified=step > 0)
            held, alternatives = self.groups[-1]
            self.groups[-1] = (held or repeats or most > 1, alternatives)
        return ''

    def _count(self, most: int, *, closes: bool, quantified: bool) -> None:
        if quantified:
            self.cost += math.log2(min(most, CHEAP_LETTERS) + 1)
        if closes and most > 1:
            self.cost = math.inf  # alternatives in it multiply

    def _atom(self, expression: str, at: int) -> tuple[bool, int]:
        """Step over one atom.

        Returns:
            Whether it closes a group that holds a repeat, and its length; 0
            if it is malformed or nested too deeply.
        """
        letter, length = expression[at], 1
        if letter == '\\':
            if expression[at + 1 : at + 2] in '123456789':
                self.cost += math.log2(CHEAP_LETTERS)
            return False, 2
        if letter == '[':
            found = _CLASS.match(expression, at)
            return False, found.end() - at if found else 0
        if letter == '(':
            self.groups.append((False, 1))
            length = 2 if expression[at + 1 : at + 2] == '?' else 1
            return False, length if len(self.groups) <= MAX_GROUPS + 1 else 0
        if letter == ')':
            held, alternatives = self.groups.pop()
            self.cost += math.log2(alternatives)
            return held, 1 if self.groups else 0
        if letter == '|':
            held, alternatives = self.groups[-1]
            self.groups[-1] = (held, alternatives + 1)
        return False, length


_ENDLESS = 1 << 31


def _quantifier(expression: str, at: int) -> tuple[int, int]:
    """Return the most repeats asked for at a place, and the length of it."""
    letter = expression[at : at + 1]
    found = _COUNT.match(expression, at)
    if letter and letter in '*+?':
        most, length = (1 if letter == '?' else _ENDLESS), 1
    elif found and (found[1] or found[3]):
        last = found[3] if found[2] else found[1]
        most, length = int(last) if last else _ENDLESS, len(found[0])
    else:
        return 1, 0
    lazy = expression[at + length : at + length + 1] in ('?', '+')
    return most, length + lazy
