"""Run a function in a forked process and watch time, memory, output."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

__all__ = ['Outcome', 'forked']

TICKS = os.sysconf('SC_CLK_TCK')
# Limit of the slowdown by other processes.
MOST_WALL = 6

PAGE = resource.getpagesize()
POLL_SECONDS = 0.02
KEPT_BYTES = 2**20


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Outcome of a run.

    Args:
        code: Exit status; a negative value is the signal that ended it.
        seconds: Processor time, which other processes do not change.
        wall: Wall time in seconds.
        peak_mib: Peak resident memory of the process, in MiB.
        ended: '' or why it was stopped: ``time`` or ``memory``.
        output: End of its output.
    """

    code: int
    seconds: float
    wall: float
    peak_mib: float
    ended: str
    output: str


def forked(
    run: Callable[[], object],
    *,
    log: Path,
    seconds: float = 90,
    limit_mib: float = 3072,
) -> Outcome:
    """Run a function in a child of this process, with its imports ready.

    Args:
        run: Function to run; the exit status is that of a script.
        log: File for its output.
        seconds: Processor time after which it is stopped; wall time may be
            six times as long.
        limit_mib: Resident memory at which it is stopped.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    start = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        _child(run, log)
    status, usage, ended = _watch(
        pid,
        seconds=seconds,
        until=start + MOST_WALL * seconds,
        limit_mib=limit_mib,
    )
    wall = time.perf_counter() - start
    # Its own children must not outlive it.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    return Outcome(
        code=os.waitstatus_to_exitcode(status),
        seconds=usage.ru_utime + usage.ru_stime,
        wall=wall,
        peak_mib=usage.ru_maxrss / 1024,
        ended=ended,
        output=_tail(log),
    )


def _tail(log: Path) -> str:
    with log.open('rb') as file:
        file.seek(max(0, log.stat().st_size - KEPT_BYTES))
        return file.read().decode(errors='replace')


def _watch(
    pid: int, *, seconds: float, until: float, limit_mib: float
) -> tuple[int, resource.struct_rusage, str]:
    ended = ''
    while True:
        done, status, usage = os.wait4(pid, 0 if ended else os.WNOHANG)
        if done:
            return status, usage, ended
        if time.perf_counter() > until or _processor(pid) > seconds:
            ended = 'time'
        elif _resident_mib(pid) > limit_mib:
            ended = 'memory'
        if ended:
            os.kill(pid, signal.SIGKILL)
        else:
            time.sleep(POLL_SECONDS)


def _processor(pid: int) -> float:
    """Return the processor time of a process in seconds."""
    try:
        text = Path(f'/proc/{pid}/stat').read_text(encoding='ascii')
    except OSError:
        return 0.0
    fields = text.rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def _resident_mib(pid: int) -> float:
    try:
        text = Path(f'/proc/{pid}/statm').read_text(encoding='ascii')
    except OSError:
        return 0.0
    return int(text.split()[1]) * PAGE / 2**20


def _child(run: Callable[[], object], log: Path) -> NoReturn:
    """Run like a script, and exit."""
    code = 1
    try:
        os.setpgid(0, 0)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        code = _as_script(run)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _as_script(run: Callable[[], object]) -> int:
    try:
        run()
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return error.code or 0
        sys.stderr.write(f'{error.code}\n')
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0
