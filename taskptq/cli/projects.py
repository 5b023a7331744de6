"""Installed projects: packages with the entry point ``taskptq.projects``.

Importing a project's package registers its models, data sets and recipes.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

__all__ = ['installed_projects', 'load_projects', 'recipe_folders']

GROUP = 'taskptq.projects'
# What importing a package may raise.
IMPORT_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


def installed_projects() -> list[metadata.EntryPoint]:
    """Return the entry points of all installed projects, by name."""
    found = {entry.name: entry for entry in metadata.entry_points(group=GROUP)}
    return [found[name] for name in sorted(found)]


def load_projects() -> list[str]:
    """Import every installed project; a failure is a warning.

    Returns:
        Names of the projects that were imported.
    """
    loaded = []
    for entry in installed_projects():
        try:
            entry.load()
        except IMPORT_ERRORS as error:
            print(
                f'warning: the project {entry.name} could not be imported '
                f'({type(error).__name__}: {_first_line(error)}); its models '
                'and recipes are unknown here',
                file=sys.stderr,
            )
        else:
            loaded.append(entry.name)
    return loaded


def recipe_folders() -> Iterator[tuple[str, Path]]:
    """Yield (project, folder of its recipes), importing nothing."""
    for entry in installed_projects():
        package = entry.value.partition(':')[0]
        spec = importlib.util.find_spec(package.partition('.')[0])
        for place in (spec and spec.submodule_search_locations) or ():
            folder = Path(place) / 'recipes'
            if folder.is_dir():
                yield package, folder


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [''])[0]
