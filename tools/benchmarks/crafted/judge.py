"""Judge whether a tool handled a crafted file correctly."""

from __future__ import annotations

import re
from pathlib import Path

from .case import Case
from .launch import OWN_TOOLS
from .worker import Outcome

__all__ = ['judge', 'last_line']

MORE_MIB = 1024
MORE_SECONDS = 20
LONGEST = 1000
ERROR = re.compile(r'^(?P<kind>[A-Za-z_][\w.]*): (?P<text>.+)$')
FRAME = re.compile(r'^\s*File "(?P<path>[^"]+)", line \d+, in ', re.M)
# Errors of the language, which are not meant for users.
BARE = (
    'AttributeError',
    'KeyError',
    'TypeError',
    'IndexError',
    'AssertionError',
    'RecursionError',
    'MemoryError',
    'EOFError',
    'UnpicklingError',
    'UnboundLocalError',
    'OverflowError',
    'ModuleNotFoundError',
    'ImportError',
    'NotImplementedError',
    'BadZipFile',
    'error',
    'UnicodeDecodeError',
    'ZeroDivisionError',
)


def last_line(output: str) -> str:
    """Return the last line that is not empty."""
    lines = [line for line in output.split('\n') if line.strip()]
    return lines[-1].strip() if lines else ''


def judge(
    case: Case,
    tool: str,
    outcome: Outcome,
    *,
    baseline: Outcome,
    marked: bool,
    package: Path,
) -> list[str]:
    """List the violations of an outcome.

    Args:
        case: The crafted file.
        tool: Tool that got it.
        outcome: Its outcome.
        baseline: The tool's outcome with the good file.
        marked: Whether the marker appeared.
        package: Folder of the package under test.
    """
    wrong = ['ran code'] if marked else []
    if outcome.peak_mib > baseline.peak_mib + MORE_MIB:
        wrong.append('memory')
    if outcome.ended == 'time':
        wrong.append('hang')
    elif outcome.seconds > baseline.seconds + MORE_SECONDS:
        wrong.append('slow')
    if outcome.ended:
        return wrong
    if outcome.code < 0:
        return [*wrong, f'signal {-outcome.code}']
    if outcome.code == 0:
        return [*wrong, 'accepted'] if must_refuse(case, tool) else wrong
    if case.expect == 'accepted' and not must_refuse(case, tool):
        wrong.append('refused')
    if not is_sentence(outcome.output, tool=tool, package=package):
        wrong.append('no sentence')
    return wrong


def must_refuse(case: Case, tool: str) -> bool:
    """Return whether a file must be refused.

    Quantizing also refuses quantized files.
    """
    twice = tool == 'quantize' and case.source == 'quantized'
    return case.expect == 'refused' or twice


def is_sentence(output: str, *, tool: str, package: Path) -> bool:
    """Return whether the output ends with one sentence of ours.

    For our tools this is a separate line without a traceback, for others the
    message of an error raised in the package.
    """
    line = last_line(output)
    if '\x1b' in line or not 20 <= len(line) <= LONGEST:
        return False
    if tool in OWN_TOOLS:
        return (
            'Traceback (most recent' not in output
            and len(line.split()) >= 4
            and not any(line.startswith(f'{name}:') for name in BARE)
        )
    found = ERROR.match(line)
    if found is None or len(found['text'].split()) < 4:
        return False
    if found['kind'].rpartition('.')[2] in BARE:
        return False
    frames = [match['path'] for match in FRAME.finditer(output)]
    return bool(frames) and Path(frames[-1]).is_relative_to(package)
