"""Progress of a reconstruction, unit by unit."""

from __future__ import annotations

from types import TracebackType

from torch import Tensor

from taskptq.core.progress import Progress

__all__ = ['RunProgress']


class RunProgress:
    """Show unit k of L, its loss and the time left for the whole run.

    Args:
        num_units: Units of the run.
        steps: Steps per unit.
        enabled: Whether to allow the live display.
    """

    def __init__(
        self, num_units: int, steps: int, *, enabled: bool = True
    ) -> None:
        self._progress = Progress(
            'unit', total=num_units * steps, parts=num_units, enabled=enabled
        )

    def __enter__(self) -> RunProgress:
        """Start the display."""
        self._progress.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop the display."""
        self._progress.__exit__(kind, error, traceback)

    def start_unit(self, index: int, name: str) -> None:
        """Mark the start of a unit."""
        self._progress.start_part(index, name)

    def step(self, step: int, loss: Tensor) -> None:
        """Mark the end of a step."""
        self._progress.advance(loss=loss)
