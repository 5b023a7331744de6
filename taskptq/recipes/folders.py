"""The folders of method files, and how a file is read.

A method file sets ``qconfig``, ``reconstruction``, ``loss``, ``rewrites`` or
``distillation`` as plain Python values. ``base`` names the method that it
changes, or a list of them, merged in order. A file whose name starts with an
underscore is only a base. The bits of a file do not count: names set them.
"""

from __future__ import annotations

import ast
import difflib
import importlib.util
import runpy
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from taskptq.core.setting_error import (
    SettingError,
    check_keys,
    refuse,
    shown,
)
from taskptq.recipes.merge import merge

KEYS = (
    'qconfig',
    'reconstruction',
    'loss',
    'rewrites',
    'distillation',
    'mixed_precision',
)
OWN = 'taskptq'
# Code of this package, which lies next to its methods.
CODE = ('folders', 'merge', 'names')

_FOLDERS: dict[str, Path] = {OWN: Path(__file__).parent}


def register_folder(folder: str | Path, *, scope: str | None = None) -> None:
    """Make the method files of a folder known.

    A name without a scope means the method of taskptq, if it has one, so
    that no import changes what a name means; otherwise that of the one
    project that has it. ``scope::name`` means the scope's own method first.

    Args:
        folder: The folder; or the dotted name of a package, which need not
            be imported.
        scope: Name of the project; None is the first part of the package's
            name, or the folder's name.

    Raises:
        SettingError: If there is no such folder, or the scope has another.
    """
    found = Path(folder)
    if not found.is_dir() and '/' not in str(folder):
        found = _package_folder(str(folder))
        scope = scope or str(folder).partition('.')[0]
    if not found.is_dir():
        raise refuse('folder', str(folder), 'there is no such folder')
    scope, found = scope or found.resolve().name, found.resolve()
    if not scope.isidentifier():
        raise refuse('scope', scope, 'give a name such as lane_detection')
    known = _FOLDERS.setdefault(scope, found)
    if known != found:
        raise refuse('scope', scope, f'it has its recipes in {known} already')


def _package_folder(name: str) -> Path:
    """Return the folder of a package."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise refuse('folder', name, 'there is no such folder or package')
    return Path(next(iter(spec.submodule_search_locations)))


def scopes() -> list[str]:
    """Return taskptq and the registered projects, in order."""
    return list(_FOLDERS)


def method_names(scope: str = OWN) -> list[str]:
    """Return the names of a scope's own methods, sorted.

    Args:
        scope: taskptq or a registered project.
    """
    return sorted(
        path.stem
        for path in _FOLDERS[scope].glob('*.py')
        if not path.stem.startswith('_')
        and not (scope == OWN and path.stem in CODE)
    )


def describe_method(method: str, *, scope: str = OWN) -> str:
    """Return the first line of a method file's docstring.

    Args:
        method: One of :func:`method_names`.
        scope: Where it lies.
    """
    source = (_FOLDERS[scope] / f'{method}.py').read_text(encoding='utf-8')
    text = ast.get_docstring(ast.parse(source)) or ''
    return text.partition('\n')[0]


def find_scope(method: str, *, scope: str | None) -> str:
    """Return the scope whose method is meant.

    Args:
        method: Name of a method.
        scope: What the recipe's name says, None if it says nothing.

    Raises:
        SettingError: If there is none, or several have it.
    """
    if scope is not None and scope not in _FOLDERS:
        raise SettingError(
            'recipe',
            f': no recipes of {scope!r} are known '
            f'({", ".join(_FOLDERS)} are): import the project first, in a '
            'config with custom_imports',
        )
    searched = [*([scope] if scope else []), OWN]
    for candidate in searched:
        if method in method_names(candidate):
            return candidate
    others = (
        []
        if scope
        else [name for name in _FOLDERS if method in method_names(name)]
    )
    if len(others) == 1:
        return others[0]
    if others:
        written = ' or '.join(f'{name}::' for name in others)
        raise SettingError(
            'recipe',
            f': several projects have a method {method!r}: put '
            f'{written} before the name',
        )
    known = {
        name
        for one in (searched if scope else _FOLDERS)
        for name in method_names(one)
    }
    raise SettingError(
        'recipe',
        f'{_unknown(method, known)}; those of a project are known '
        'once it is imported',
    )


def _unknown(method: str, known: Iterable[str]) -> str:
    """Say that there is no such method, and which ones are nearest."""
    near = difflib.get_close_matches(
        method[:100], sorted(known), n=3, cutoff=0
    )
    return (
        f': there is no method {shown(method)} (the nearest are '
        f'{", ".join(near)})'
    )


def read_method(method: str, *, scope: str) -> dict[str, Any]:
    """Return the settings of a method, its bases merged.

    Args:
        method: Name of a file, without ``.py``.
        scope: Where the file lies.

    Raises:
        SettingError: If a file or a base is not as it has to be.
    """
    settings: dict[str, Any] = {}
    for content in _contents(method, scope=scope, above=()):
        settings = merge(settings, content)
    return settings


def _contents(
    method: str, *, scope: str, above: tuple[Path, ...]
) -> Iterator[dict[str, Any]]:
    """Yield what a method's bases set, each with its own first; then its own.

    Args:
        method: Name of a file.
        scope: Where it lies.
        above: The files that have it as a base.
    """
    path = _FOLDERS[scope] / f'{method}.py'
    if path in above:
        raise SettingError(str(path), ' is a base of itself')
    content = {
        key: value
        for key, value in runpy.run_path(str(path)).items()
        if not key.startswith('__')
    }
    check_keys(content, ('base', *KEYS), name=str(path))
    bases = content.pop('base', [])
    for base in [bases] if isinstance(bases, str) else bases:
        yield from _contents(
            base,
            scope=_scope_of_base(base, scope=scope, path=path),
            above=(*above, path),
        )
    yield content


def _scope_of_base(base: str, *, scope: str, path: Path) -> str:
    """Return where a base lies: next to the method, or in taskptq."""
    for candidate in (scope, OWN):
        if (_FOLDERS[candidate] / f'{base}.py').is_file():
            return candidate
    known = {*method_names(scope), *method_names()}
    raise SettingError(f'{path}: base', _unknown(base, known))
