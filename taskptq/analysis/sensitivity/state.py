"""Numbers that an interrupted analysis has measured already."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from taskptq.core.atomic import write_atomically

__all__ = ['MeasuredState']


class MeasuredState:
    """Numbers by key, saved after each; those of another run are dropped.

    >>> state = MeasuredState()
    >>> state.get('a', lambda: 1.5), state.get('a', lambda: 2.5)
    (1.5, 1.5)

    Args:
        path: JSON file; None keeps them in memory only.
        owner: What the numbers are of, in plain types: a file that differs
            in it is started anew.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        owner: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = None if path is None else Path(path)
        self.owner = json.loads(json.dumps(dict(owner or {})))
        self.values: dict[str, float] = {}
        if self.path is not None:
            self.values = self._read(self.path)

    def get(self, key: str, measure: Callable[[], float]) -> float:
        """Return a number, measured and saved if it is new."""
        if key not in self.values:
            self.values[key] = float(measure())
            self._save()
        return self.values[key]

    def remove(self) -> None:
        """Remove the file, once nothing is left to measure."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _read(self, path: Path) -> dict[str, float]:
        try:
            content = json.loads(path.read_text(encoding='utf-8'))
        except (OSError, ValueError):
            return {}
        if not isinstance(content, dict) or content.get('of') != self.owner:
            return {}
        values = content.get('values')
        if not isinstance(values, dict):
            return {}
        return {
            str(key): float(value)
            for key, value in values.items()
            if isinstance(value, int | float) and math.isfinite(value)
        }

    def _save(self) -> None:
        if self.path is None:
            return
        content = {'of': self.owner, 'values': self.values}
        text = json.dumps(content, indent=1) + '\n'
        write_atomically(
            self.path, lambda file: file.write(text.encode('utf-8'))
        )
