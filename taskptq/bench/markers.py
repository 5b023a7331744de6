"""Kinds of README markers besides those of result tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from taskptq.bench.detr_markers import update_detr_text
from taskptq.bench.file_markers import update_file_text
from taskptq.bench.training_markers import update_training_text
from taskptq.bench.zoo.page import update_zoo_text

__all__ = ['Updater', 'register', 'updaters']

# (text, root, families, entries) -> the text with updated markers; families
# are the patterns of folders with results, entries all tables by name.
Updater = Callable[[str, Path, Sequence[str], Mapping[str, Any]], str]

_REGISTERED: dict[str, Updater] = {}


def register(name: str, updater: Updater) -> None:
    """Add the markers of a project to ``tools/collect_results.py``.

    Args:
        name: Name of the project; registering it again replaces it.
        updater: Returns a README's text with all of its markers updated.
    """
    _REGISTERED[name] = updater


def updaters() -> list[Updater]:
    """Return all kinds, the plugin's own first."""
    return [
        update_detr_text,
        update_file_text,
        update_training_text,
        update_zoo_text,
        *_REGISTERED.values(),
    ]
