"""Progress of an analysis: a bar in a terminal, a log line elsewhere."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ['Advance', 'no_progress', 'progress_bar']

logger = logging.getLogger('taskptq')

Advance = Callable[[int], None]
# Seconds between log lines where there is no terminal.
LOG_EVERY = 30.0


def no_progress(count: int) -> None:
    """Do nothing."""


@contextmanager
def progress_bar(title: str, *, total: int) -> Iterator[Advance]:
    """Show how much of a loop is done.

    Args:
        title: What is running.
        total: Steps of the whole loop.

    Yields:
        A function to call with the number of steps just done.
    """
    if sys.stderr.isatty() and not os.environ.get('CI'):
        with Progress(
            TextColumn('{task.description}'),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        ) as bar:
            task = bar.add_task(title, total=total)
            yield lambda count: bar.advance(task, count)
        return
    yield _Lines(title, total).advance


class _Lines:
    """Log a line now and then."""

    def __init__(self, title: str, total: int) -> None:
        self.title = title
        self.total = total
        self.done = 0
        self._logged = time.perf_counter()

    def advance(self, count: int) -> None:
        """Count steps."""
        self.done += count
        now = time.perf_counter()
        if self.done >= self.total or now - self._logged >= LOG_EVERY:
            self._logged = now
            logger.info('%s: %d/%d', self.title, self.done, self.total)
