"""End a run that cannot work early, with one sentence."""

from __future__ import annotations

import errno
import inspect
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from taskptq.core.setting_error import check_keys
from taskptq.engine.import_style import type_name
from taskptq.export.checkpoint import QuantizedCheckpointError
from taskptq.reconstruction.state_folder import FolderInUseError
from taskptq.registry import HOOKS, registered

__all__ = [
    'check_hooks',
    'one_sentence',
    'refuse_replaced_input',
    'refuse_unwritable_file',
    'refuse_unwritable_folder',
]

PACKAGE = 'taskptq'
OWN_HOOKS = ('PTQHook', 'QATHook')


@contextmanager
def one_sentence() -> Iterator[None]:
    """End a command with the message of our own checks, without traceback.

    Errors of a host and bugs keep their traceback.

    Raises:
        SystemExit: With the message.
    """
    try:
        yield
    except (
        OSError,
        ValueError,
        FolderInUseError,
        QuantizedCheckpointError,
    ) as error:
        if getattr(error, 'errno', None) == errno.ENOSPC:
            raise SystemExit(
                f'the disk is full ({error}): make room, or write elsewhere'
            ) from error
        if not raised_here(error):
            raise
        raise SystemExit(str(error)) from error


def check_hooks(hooks: Iterable[Any] | None) -> None:
    """Check the settings of our hooks before anything is built.

    Args:
        hooks: ``custom_hooks`` of a config.

    Raises:
        ValueError: With a hook's message about its settings.
    """
    for hook in hooks or ():
        if not isinstance(hook, Mapping) or (
            type_name(hook.get('type')) not in OWN_HOOKS
        ):
            continue
        settings = {
            key: value
            for key, value in hook.items()
            if key not in ('type', 'priority', '_scope_')
        }
        name = type_name(hook['type'])
        kind = registered_hook(name)
        check_keys(settings, inspect.signature(kind).parameters, name=name)
        kind(**settings)


def registered_hook(name: str) -> type:
    """Return the class of one of our hooks."""
    found = registered(HOOKS, name)
    assert found is not None
    return found


def raised_here(error: BaseException) -> bool:
    """Return whether an error was raised in a module of this package."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return False
    module = str(trace.tb_frame.f_globals.get('__name__', ''))
    return module.partition('.')[0] == PACKAGE


def refuse_unwritable_folder(path: str | Path, *, name: str) -> None:
    """Refuse an output folder that cannot be written, before the work.

    Args:
        path: Folder, which need not exist yet.
        name: Name of its setting.

    Raises:
        ValueError: If it is a file, lies below one, or is read-only.
    """
    path = Path(path)
    folder = path.absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise ValueError(
            f'{name}={path} cannot be created, because {folder} is not a '
            'folder: choose another'
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(
            f'{name}={path} cannot be written: {folder} is read-only, choose '
            'another or change its permissions'
        )


def refuse_replaced_input(
    path: str | Path, *, name: str, inputs: Iterable[Any]
) -> None:
    """Refuse an output file that is one of the files a run reads.

    Args:
        path: File to write.
        name: Name of its setting.
        inputs: What the run reads; anything but paths is skipped.

    Raises:
        ValueError: If one of them would be replaced.
    """
    for given in inputs:
        if is_same_file(path, given):
            raise ValueError(
                f'{name} would replace {given}, which this run reads: choose '
                'another file'
            )


def is_same_file(path: str | Path, given: Any) -> bool:
    """Whether both are paths of one file, which exists."""
    if not isinstance(given, (str, Path)):
        return False
    try:
        return Path(path).samefile(given)
    except (OSError, ValueError):
        return False


def refuse_unwritable_file(path: str | Path, *, name: str) -> None:
    """Refuse an output file that cannot be written, before the work.

    Args:
        path: File, which need not exist yet.
        name: Name of its setting.

    Raises:
        ValueError: If it is a folder, or its folder cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f'{name}={path} is a folder: give a file in it')
    if path.exists() and not os.access(path, os.W_OK):
        raise ValueError(f'{name}={path} is read-only: choose another')
    refuse_unwritable_folder(path.parent, name=name)
