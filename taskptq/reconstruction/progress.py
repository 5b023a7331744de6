"""Progress of a reconstruction: a live display, or a log line per unit."""

from __future__ import annotations

import logging
import os
import sys
import time
from types import TracebackType

from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from torch import Tensor

logger = logging.getLogger('taskptq')

# Steps between refreshes: reading the loss off the device costs a sync.
REFRESH_EVERY = 25


class RunProgress:
    """Show unit k of L, its loss and the time left for the whole run.

    Only logs lines in CI and without a terminal.

    Args:
        num_units: Units of the run.
        steps: Steps per unit.
        enabled: Whether to allow the live display.
    """

    def __init__(
        self, num_units: int, steps: int, *, enabled: bool = True
    ) -> None:
        live = enabled and sys.stderr.isatty() and not os.environ.get('CI')
        self.num_units = num_units
        self.steps = steps
        self._display: Progress | None = None
        self._task: TaskID | None = None
        if live:
            self._display = Progress(
                TextColumn('unit {task.fields[unit]}/{task.fields[units]}'),
                TextColumn('{task.fields[name]}'),
                BarColumn(),
                TextColumn('loss {task.fields[loss]}'),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
            )
        self._index = 0
        self._name = ''
        self._loss: Tensor | None = None
        self._started = time.perf_counter()

    def __enter__(self) -> RunProgress:
        """Start the display."""
        if self._display is not None:
            self._display.start()
            self._task = self._display.add_task(
                'reconstruct',
                total=self.num_units * self.steps,
                unit=0,
                units=self.num_units,
                name='',
                loss='-',
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop the display."""
        self._finish_unit()
        if self._display is not None:
            self._display.stop()

    def start_unit(self, index: int, name: str) -> None:
        """Mark the start of a unit."""
        self._finish_unit()
        self._index, self._name, self._loss = index, name, None
        if self._display is not None and self._task is not None:
            self._display.update(
                self._task,
                completed=index * self.steps,
                unit=index + 1,
                name=name,
            )

    def step(self, step: int, loss: Tensor) -> None:
        """Mark the end of a step."""
        self._loss = loss
        if self._display is None or (step + 1) % REFRESH_EVERY:
            return
        assert self._task is not None
        self._display.update(
            self._task,
            completed=self._index * self.steps + step + 1,
            loss=f'{float(loss):.4g}',
        )

    def _finish_unit(self) -> None:
        if not self._name:
            return
        done = (self._index + 1) / self.num_units
        elapsed = time.perf_counter() - self._started
        loss = '-' if self._loss is None else f'{float(self._loss):.4g}'
        logger.info(
            'unit %d/%d %s: loss %s, %.0f s elapsed, about %.0f s left',
            self._index + 1,
            self.num_units,
            self._name,
            loss,
            elapsed,
            elapsed / done - elapsed,
        )
        self._name = ''
