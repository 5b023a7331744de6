"""Lock the folder of resume states for one run at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from taskptq.core.distributed import gathered, own_rank

__all__ = ['FolderInUseError', 'locked', 'remove_partials']


class FolderInUseError(RuntimeError):
    """Another run is using the folder."""


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Keep other runs out of a folder, which need not exist yet.

    The lock file ``.<name>.lock`` lies next to the folder, so that the
    folder itself may be removed while locked. The operating system frees the
    lock when the process ends, for whatever reason; the file stays.

    In a distributed run rank 0 takes the lock for all ranks, so all of them
    must call this.

    Args:
        folder: Folder for one run at a time.

    Raises:
        FolderInUseError: If another run holds the lock; on every rank.
        OSError: If the lock file cannot be written.
    """
    folder = Path(folder).absolute()
    lock = FileLock(folder.with_name(f'.{folder.name}.lock'))
    taken = True
    try:
        if own_rank() == 0:
            taken = _take(lock)
        if not all(gathered(taken)):
            raise FolderInUseError(
                f'{folder} is in use by another run: wait until it is done, '
                'or give this run its own work_dir'
            )
        yield
    finally:
        lock.release()


def _take(lock: FileLock) -> bool:
    Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
    return True


def remove_partials(folder: Path) -> None:
    """Remove half-written states; only while the folder is locked."""
    for partial in folder.glob('*.partial'):
        partial.unlink(missing_ok=True)
