"""Atomic file writes: a file is complete, or it does not exist."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

SUFFIX = '.partial'
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
# torch's zip writer hides the cause of a failed write behind these words.
TORCH_WRITE_ERRORS = ('inline_container', 'PytorchStreamWriter')


class DiskFullError(OSError):
    """A file doesn't fit on its disk; its partial copy has been removed."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.errno = errno.ENOSPC


def write_atomically(
    path: str | Path, write: Callable[[BinaryIO], object]
) -> None:
    """Write a file through a partial one in the same folder.

    The partial file ``.<name>.<process id>.partial`` is flushed to disk
    before it replaces ``path``. Partial files that killed processes left
    behind are removed first.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder, 'new', 'codes.bin')
    ...     write_atomically(path, lambda file: file.write(b'codes'))
    ...     path.read_bytes()
    b'codes'

    Args:
        path: Target; replaced if it exists. Missing folders are made.
        write: Writes the whole content to the open file it receives. If the
            disk is full, it is called again to count the bytes.

    Raises:
        DiskFullError: If the disk is full; names the size needed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_stale_partials(path)
    partial = path.with_name(f'.{path.name}.{os.getpid()}{SUFFIX}')
    try:
        with _Recorder(partial) as file:
            try:
                write(cast(BinaryIO, file))
                file.sync()
            except (OSError, RuntimeError) as error:
                file.discard()
                _explain_full_disk(path, write, file=file, error=error)
                raise
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    _sync_folder(path.parent)


def remove_stale_partials(path: str | Path) -> list[Path]:
    """Remove partial files of ``path`` whose process has ended.

    Returns:
        The removed files.
    """
    path = Path(path)
    start = f'.{path.name}.'
    removed = []
    for partial in path.parent.iterdir():
        name = partial.name
        if not (name.startswith(start) and name.endswith(SUFFIX)):
            continue
        process = name[len(start) : -len(SUFFIX)]
        if process.isdecimal() and not process_runs(int(process)):
            partial.unlink(missing_ok=True)
            removed.append(partial)
    return removed


class _Recorder:
    """A file that remembers why a write failed.

    torch's writer raises its own error instead, or none.
    """

    def __init__(self, path: Path) -> None:
        self.file = path.open('wb', buffering=0)
        self.failure: OSError | None = None

    def __enter__(self) -> _Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> int:
        """Write all of ``data``."""
        view = memoryview(data).cast('B')
        done = 0
        try:
            while done < len(view):
                done += self.file.write(view[done:])
        except OSError as error:
            self.failure = error
            raise
        return done

    def flush(self) -> None:
        """Do nothing: nothing is buffered."""

    def tell(self) -> int:
        """Return the position, in bytes."""
        return self.file.tell()

    def sync(self) -> None:
        """Flush everything to disk.

        Raises:
            OSError: If this or an earlier write failed.
        """
        if self.failure is not None:
            raise self.failure
        try:
            os.fsync(self.file.fileno())
        except OSError as error:
            self.failure = error
            raise

    def discard(self) -> None:
        """Free the bytes written so far."""
        self.file.truncate(0)


class _Counter:
    """A file that only counts the bytes written to it."""

    def __init__(self) -> None:
        self.count = 0

    def write(self, data: bytes) -> int:
        size = memoryview(data).nbytes
        self.count += size
        return size

    def flush(self) -> None:
        """Do nothing."""

    def tell(self) -> int:
        return self.count


def _explain_full_disk(
    path: Path,
    write: Callable[[BinaryIO], object],
    *,
    file: _Recorder,
    error: BaseException,
) -> None:
    """Raise DiskFullError if a full disk caused ``error``."""
    reason = file.failure or error
    full = isinstance(reason, OSError) and reason.errno in FULL_DISK
    if not full and not any(w in str(reason) for w in TORCH_WRITE_ERRORS):
        return
    counter = _Counter()
    write(cast(BinaryIO, counter))
    free = shutil.disk_usage(path.parent).free
    if not full and free > counter.count:
        return
    raise DiskFullError(
        f'the disk is full: {path} takes {counter.count:,} bytes, and '
        f'{free:,} are free in its folder; make room or write it elsewhere'
    ) from error


def process_runs(process: int) -> bool:
    """Whether a process with this id exists on this machine."""
    if os.name != 'posix':
        return True  # signal 0 would end the process there
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a power failure, where folders allow it."""
    if os.name != 'posix':
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError:
        return  # some network file systems cannot sync folders
    finally:
        os.close(handle)
