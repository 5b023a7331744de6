"""Which module's code makes a call, and from which place in that code.

A place is the line relative to the start of its function, and the rank of
the call among those of that line. It stays the same in loops, for any
number of images, and in another process: so it names a point in a file.
"""

from __future__ import annotations

import dis
import inspect
import os
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import torch
from torch import nn

# Not the packages whose names begin alike, such as torchvision.
_TORCH = f'{Path(torch.__file__).parent}{os.sep}'
_OWN = f'{Path(__file__).parent}{os.sep}'
# Code that begins the call of a module, by its id.
_CALL_CODES = {
    id(method.__code__): method.__code__
    for method in (
        nn.Module._wrapped_call_impl,
        nn.Module._call_impl,
        # While torch traces.
        nn.Module._slow_forward,
    )
}
# Up to Python 3.12 a frame keeps the dict that it gives of its variables.
_SNAPSHOTS = sys.version_info < (3, 13)
# A recursive method has one place for all depths beyond this one.
MAX_DEPTH = 8
MAX_FRAMES = 100
MAX_CHAINS = 10_000


class Site(NamedTuple):
    """Where a call comes from.

    Args:
        module: Innermost module whose method is running.
        method: Method of that module around the call: entering it is enough
            to see the call.
        path: Place of the call, e.g. 'forward+12.0>attend+3.1'.
    """

    module: nn.Module
    method: str
    path: str


class _Step(NamedTuple):
    """One function on the way to a call."""

    at: int
    name: str
    text: str
    names: tuple[str, ...]
    module: nn.Module | None


class _Chain(NamedTuple):
    """What is known of a chain of running functions.

    Args:
        codes: Their code, which keeps its ids from being used again.
        owned: Indices of those that are methods of the innermost module.
        firsts: Names of the first arguments of these.
        entered: Whether the last of these was called by one of ``ENTRIES``.
        method: As in :class:`Site`.
        path: As in :class:`Site`.
    """

    codes: tuple[CodeType, ...]
    owned: tuple[int, ...]
    firsts: tuple[str, ...]
    entered: bool
    method: str
    path: str


# Functions that enter the mode of a module and call one of its methods.
ENTRIES: set[CodeType] = set()
_CHAINS: dict[tuple[int, ...], _Chain | None] = {}


def begins_call(function: Callable[..., Any]) -> None:
    """Make a Python function that runs a module's ``forward`` no step of it.

    Args:
        function: It stands for ``forward`` and passes its arguments on.
    """
    code = function.__code__
    _CALL_CODES[id(code)] = code


def find_site(
    frame: FrameType | None, *, owner: nn.Module | None = None
) -> Site | None:
    """Return the site of a call; None if no module is at work.

    Args:
        frame: Frame of the caller, e.g. ``sys._getframe(1)``.
        owner: Whose method ``ENTRIES`` have called; None if they have not.
    """
    frames: list[FrameType] = []
    key: list[int] = []
    while frame is not None and len(frames) < MAX_FRAMES:
        code = frame.f_code
        if id(code) in _CALL_CODES:
            # Only plain functions lie between this call and the module.
            break
        frames.append(frame)
        # Code compares by its contents, which takes long.
        key.append(id(code))
        key.append(frame.f_lasti)
        frame = frame.f_back
    known = tuple(key)
    chain = _CHAINS.get(known)
    if chain is None:
        if known in _CHAINS:
            return None
        return _new_site(known, frames)
    # The outermost method runs on the owner: its variables take long to read.
    module = owner if chain.entered else None
    count = len(chain.owned) - (module is not None)
    for index, name in zip(chain.owned[:count], chain.firsts, strict=False):
        first = _variable(frames[index], name)
        if module is not None and first is not module:
            # The same functions, of two modules of one class.
            return _site(module, _chain(frames))
        module = first
    return _site(module, chain)


def _new_site(known: tuple[int, ...], frames: list[FrameType]) -> Site | None:
    """Look at a chain that was not met yet."""
    if len(_CHAINS) > MAX_CHAINS:
        _CHAINS.clear()
    chain = _CHAINS[known] = _chain(frames)
    if chain is None:
        return None
    return _site(_variable(frames[chain.owned[0]], chain.firsts[0]), chain)


def _site(module: Any, chain: _Chain | None) -> Site | None:
    return None if chain is None else Site(module, chain.method, chain.path)


def _chain(frames: list[FrameType]) -> _Chain | None:
    """Look at a chain of functions, innermost first."""
    inner: list[_Step] = []
    owned: list[_Step] = []
    for step in _steps(frames):
        if not owned and step.module is None:
            inner.append(step)
        elif not owned or step.module is owned[0].module:
            owned.append(step)
        else:
            break
        if len(owned) == MAX_DEPTH:
            break
    if not owned:
        return None
    module = owned[0].module
    assert module is not None
    return _Chain(
        codes=tuple(frame.f_code for frame in frames),
        owned=tuple(step.at for step in owned),
        firsts=tuple(frames[step.at].f_code.co_varnames[0] for step in owned),
        entered=_is_entered(frames, owned[-1].at),
        method=_entered(module, owned),
        path='>'.join(step.text for step in (*owned[::-1], *inner[::-1])),
    )


def _is_entered(frames: list[FrameType], last: int) -> bool:
    """Whether a mode's entry called a method, and no other mode is between."""
    return (
        last + 1 < len(frames)
        and frames[last + 1].f_code in ENTRIES
        and not any(
            frame.f_code.co_filename.startswith(_OWN)
            for frame in frames[:last]
        )
    )


def _entered(module: nn.Module, owned: list[_Step]) -> str:
    """Return the innermost method that a subclass can override.

    ``super().method()`` passes an override by, so whoever calls it counts.
    """
    for step, caller in pairwise(owned):
        by_super = 'super' in caller.names and step.name in caller.names
        if not by_super and is_method(type(module), step.name):
            return step.name
    return owned[-1].name


def _steps(frames: list[FrameType]) -> Iterator[_Step]:
    """Yield what runs, from the innermost function on."""
    line = None
    for index, frame in enumerate(frames):
        code = frame.f_code
        if code.co_filename.startswith(_OWN):
            continue
        if code.co_name.startswith('<') and code.co_name != '<module>':
            # Comprehensions have a frame of their own up to Python 3.11.
            line = frame.f_lineno if line is None else line
            continue
        step = _step(frame, index, line)
        if step is not None:
            yield step
            line = None


def _step(frame: FrameType, index: int, line: int | None) -> _Step | None:
    code = frame.f_code
    module = _bound_module(frame)
    names = code.co_names
    if code.co_filename.startswith(_TORCH):
        # Lines of torch change with its version.
        if module is None:
            return None
        return _Step(index, code.co_name, code.co_name, names, module)
    place = _rank(code, frame.f_lasti) if line is None else 0
    line = frame.f_lineno if line is None else line
    text = f'{code.co_name}+{line - code.co_firstlineno}.{place}'
    return _Step(index, code.co_name, text, names, module)


def _variable(frame: FrameType, name: str) -> Any:
    """Return a variable of a running function."""
    found = frame.f_locals
    value = found.get(name)
    if _SNAPSHOTS:
        # The frame would hold on to each of its tensors until it ends.
        found.clear()
    return value


def _bound_module(frame: FrameType) -> nn.Module | None:
    """Return the module whose method runs in a frame."""
    code = frame.f_code
    if not code.co_argcount:
        return None
    first = _variable(frame, code.co_varnames[0])
    cls: Any = type(first)
    if isinstance(first, nn.Module) and _defines(cls, code):
        return first
    return None


def _defines(cls: type, code: CodeType) -> bool:
    """Whether a class, or one that it extends, has a method of this code."""
    return any(
        _code_of(vars(base).get(code.co_name)) is code for base in cls.__mro__
    )


def is_method(cls: type, name: str) -> bool:
    """Whether a name is that of a plain method, written in Python.

    >>> is_method(nn.Conv2d, 'forward'), is_method(nn.Conv2d, 'in_channels')
    (True, False)
    """
    found = inspect.getattr_static(cls, name, None)
    return inspect.isfunction(found) and name.isidentifier()


def _code_of(function: Any) -> CodeType | None:
    function = getattr(function, '__func__', function)
    while hasattr(function, '__wrapped__'):
        function = function.__wrapped__
    return getattr(function, '__code__', None)


def _rank(code: CodeType, at: int) -> int:
    """Return the rank of a running call, which may be behind its start."""
    offsets, ranks = _ranks(code)
    found = bisect_right(offsets, at) - 1
    return ranks[found] if found >= 0 else 0


@lru_cache(maxsize=1024)
def _ranks(code: CodeType) -> tuple[list[int], list[int]]:
    """Return the offsets of calls and products, and their ranks by line."""
    offsets: list[int] = []
    ranks: list[int] = []
    line, count = 0, 0
    starts = dict(dis.findlinestarts(code))
    for instruction in dis.get_instructions(code):
        start = starts.get(instruction.offset)
        if start is not None and start != line:
            line, count = start, 0
        if _may_call(instruction):
            offsets.append(instruction.offset)
            ranks.append(count)
            count += 1
    return offsets, ranks


def _may_call(instruction: dis.Instruction) -> bool:
    name = instruction.opname
    if name.startswith('CALL') and 'INTRINSIC' not in name:
        return True
    # One instruction for all operators since Python 3.11.
    if name.startswith('BINARY_OP'):
        return instruction.argrepr.startswith('@')
    return 'MATRIX_MULTIPLY' in name
