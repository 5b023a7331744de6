"""Progress of long loops: one live display, or log lines without a terminal.

Every loop that a user may have to wait for uses :class:`Progress`. Loops
inside each other share one display; :func:`listening` hands what they report
to others, such as a visualizer.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID

__all__ = ['PartDone', 'Progress', 'duration', 'is_live', 'listening']

logger = logging.getLogger('taskptq')

# Steps between reads of a loss, which cost a sync with the device.
READ_EVERY = 25
# Seconds between log lines of a loop without named parts.
LOG_EVERY = 30.0


@dataclass(frozen=True, kw_only=True)
class PartDone:
    """A part of a loop has ended.

    Args:
        title: Title of the loop, e.g. 'unit'.
        part: Name of the part.
        index: Its number, from 0.
        count: Number of parts.
        loss: Its last loss; None without.
    """

    title: str
    part: str
    index: int
    count: int
    loss: float | None = None


Listener = Callable[[PartDone], None]
_listeners: list[Listener] = []


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Call a function at the end of each part of every loop inside.

    >>> heard = []
    >>> with listening(heard.append), Progress('unit', total=2, parts=1) as p:
    ...     p.start_part(0, 'stem')
    ...     p.advance(2)
    >>> heard[0].part, heard[0].loss
    ('stem', None)
    """
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def is_live() -> bool:
    """Whether there is a terminal to draw on; not in CI."""
    can_draw = os.environ.get('TERM', 'dumb') not in ('dumb', 'unknown')
    return can_draw and sys.stderr.isatty() and not os.environ.get('CI')


def duration(seconds: float) -> str:
    """Return a duration for readers.

    >>> duration(7.4), duration(125), duration(7300)
    ('7 s', '2 min 5 s', '2 h 1 min')
    """
    whole = round(max(0.0, seconds))
    if whole < 60:
        return f'{whole} s'
    if whole < 3600:
        return f'{whole // 60} min {whole % 60} s'
    return f'{whole // 3600} h {whole % 3600 // 60} min'


class Progress:
    """Show how far a loop is, its current loss and the time left.

    Args:
        title: What is running; with parts the word for one, e.g. 'unit'.
        total: Steps of the whole loop.
        parts: Named parts, all with the same number of steps; 0 is none.
        enabled: Whether to allow the live display.
        lines: Whether to log where there is no display.
    """

    _display: ClassVar[RichProgress | None] = None
    _users: ClassVar[int] = 0

    def __init__(
        self,
        title: str,
        *,
        total: int,
        parts: int = 0,
        enabled: bool = True,
        lines: bool = True,
    ) -> None:
        self.title = title
        self.total = total
        self.parts = parts
        self.done = 0
        self._live = enabled and is_live()
        self._lines = lines
        self._task: TaskID | None = None
        self._part: tuple[int, str] | None = None
        self._loss: Tensor | float | None = None
        self._started = self._logged = time.perf_counter()

    def __enter__(self) -> Progress:
        """Start, in the display that is open or in a new one."""
        self._started = self._logged = time.perf_counter()
        if self._live:
            self._task = _open_display().add_task(
                self.title, total=max(1, self.total), loss=''
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the last part, if nothing failed, and leave the display."""
        if kind is None:
            self.end_part()
            self._end_loop()
        if self._task is not None:
            _close_display(self._task)
            self._task = None

    def start_part(self, index: int, name: str) -> None:
        """Begin the next named part; ends the one before."""
        self.end_part()
        self._part, self._loss = (index, name), None
        self.done = index * (self.total // max(1, self.parts))
        self._show(
            completed=self.done,
            description=f'{self.title} {index + 1}/{self.parts} {name}',
        )

    def advance(
        self, count: int = 1, *, loss: Tensor | float | None = None
    ) -> None:
        """Count steps.

        Args:
            count: Steps that were just done.
            loss: Loss of the last one; a tensor is read off its device now
                and then only.
        """
        before, self.done = self.done, self.done + count
        self._loss = self._loss if loss is None else loss
        if self._task is not None:
            is_cheap = not isinstance(self._loss, Tensor)
            if is_cheap or before // READ_EVERY != self.done // READ_EVERY:
                self._show(completed=self.done, loss=self._loss_text())
        elif not self.parts:
            self._log_now_and_then()

    def end_part(self) -> None:
        """End the running part: tell listeners, or log a line."""
        if self._part is None:
            return
        (index, name), self._part = self._part, None
        loss = None if self._loss is None else float(self._loss)
        done = PartDone(
            title=self.title,
            part=name,
            index=index,
            count=self.parts,
            loss=loss,
        )
        for listener in _listeners:
            listener(done)
        if self._lines:
            share = (index + 1) / max(1, self.parts)
            elapsed = time.perf_counter() - self._started
            logger.info(
                '%s %d/%d %s: %s%s elapsed, about %s left',
                self.title,
                index + 1,
                self.parts,
                name,
                '' if loss is None else f'loss {loss:.4g}, ',
                duration(elapsed),
                duration(elapsed / share - elapsed),
            )

    def _show(self, **fields: object) -> None:
        if self._task is not None and Progress._display is not None:
            Progress._display.update(self._task, **fields)  # type: ignore[arg-type]

    def _loss_text(self) -> str:
        return '' if self._loss is None else f'loss {float(self._loss):.4g}'

    def _log_now_and_then(self) -> None:
        now = time.perf_counter()
        ended = self.done >= self.total
        if not self._lines or ended or now - self._logged < LOG_EVERY:
            return
        self._logged = now
        elapsed = now - self._started
        logger.info(
            '%s: %d/%d, %s elapsed, about %s left',
            self.title,
            self.done,
            self.total,
            duration(elapsed),
            duration(elapsed / max(1, self.done) * (self.total - self.done)),
        )

    def _end_loop(self) -> None:
        if self._lines and not self.parts:
            logger.info(
                '%s: %d/%d in %s',
                self.title,
                self.done,
                self.total,
                duration(time.perf_counter() - self._started),
            )


def _open_display() -> RichProgress:
    """Return the open display, or open one."""
    if Progress._display is None:
        from rich import progress as rich
        from rich.console import Console

        Progress._display = rich.Progress(
            rich.TextColumn('{task.description}', markup=False),
            rich.BarColumn(),
            rich.TaskProgressColumn(),
            rich.TextColumn('{task.fields[loss]}', markup=False),
            rich.TimeElapsedColumn(),
            rich.TimeRemainingColumn(),
            console=Console(stderr=True, force_terminal=True),
            transient=True,
            # What is printed into a file or a pipe stays there.
            redirect_stdout=sys.stdout.isatty(),
        )
        Progress._display.start()
    Progress._users += 1
    return Progress._display


def _close_display(task: TaskID) -> None:
    """Take a loop off the display; the last one closes it."""
    display = Progress._display
    assert display is not None
    # Drawn ten times a second: a fast loop would vanish before its end shows.
    display.refresh()
    display.remove_task(task)
    Progress._users -= 1
    if not Progress._users:
        display.stop()
        Progress._display = None
