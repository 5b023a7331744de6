"""The folder for spilled activations, and whether they fit there.

The size is known before any work: the traced batch shows every tensor that
the cache will hold, and the order of the units shows for how long.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskptq.core.atomic import process_runs
from taskptq.core.distributed import gathered
from taskptq.reconstruction.capture.provenance import (
    Plan,
    Source,
    outputs_of,
    read_later,
)

__all__ = [
    'Estimate',
    'check_room',
    'disk_full',
    'estimate',
    'new_folder',
    'remove_abandoned',
    'room',
]

logger = logging.getLogger('taskptq')

PREFIX = 'taskptq-cache'
# Free space to leave if no budget is set.
MARGIN_BYTES = 1 << 30
MIB = 1 << 20


@dataclass(frozen=True)
class Estimate:
    """Peak size of the activations of a reconstruction.

    Args:
        total: Peak in memory and on disk together, in bytes.
        memory: Peak in memory, in bytes.
        disk: Peak on disk, in bytes.
    """

    total: int
    memory: int
    disk: int


class _Shelves:
    """Simulate a cache's policy with sizes only."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.memory: dict[Any, int] = {}
        self.disk: dict[Any, int] = {}
        self.used = [0, 0]
        self.most = [0, 0, 0]

    def put(self, key: Any, size: int) -> None:
        fits = self.used[0] + size <= self.max_bytes
        (self.memory if fits else self.disk)[key] = size
        self.used[0 if fits else 1] += size
        for place, value in enumerate((*self.used, sum(self.used))):
            self.most[place] = max(self.most[place], value)

    def delete(self, key: Any) -> None:
        self.used[0] -= self.memory.pop(key, 0)
        self.used[1] -= self.disk.pop(key, 0)


def estimate(
    plans: Sequence[Plan], *, num_batches: int, max_bytes: int
) -> Estimate:
    """Estimate the peak size of a reconstruction from one traced batch.

    Assumes that all batches are like the traced one.

    Args:
        plans: The units in order, with the sizes of the traced batch.
        num_batches: Calibration batches.
        max_bytes: Budget of the tensors held in memory.
    """
    shelves = _Shelves(max_bytes)
    sizes = {k: v for plan in plans for k, v in plan.sizes.items()}

    def fill(stream: str, sources: Sequence[Source]) -> None:
        for batch in range(num_batches):
            for source in sources:
                shelves.put((stream, source, batch), sizes[source])

    fill('float', [s for i, p in enumerate(plans) for s in p.captured(i)])
    for index, plan in enumerate(plans):
        if index:
            fill('quant', plan.captured(index))
        own = list(outputs_of(plan, index))
        fill('float', own)
        later = read_later(plans, index)
        fill('quant', [source for source in own if source in later])
        for source in {*own, *plan.sources()} - later:
            for batch in range(num_batches):
                shelves.delete(('float', source, batch))
                shelves.delete(('quant', source, batch))
    memory, disk, total = shelves.most
    return Estimate(total=total, memory=memory, disk=disk)


def room(folder: Path, budget: int | None) -> int:
    """Return how many bytes may be written to a folder.

    Args:
        folder: The folder, which need not exist.
        budget: Most bytes; None is the free space, less a margin.
    """
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if budget is not None:
        return min(budget, free)
    return free - min(MARGIN_BYTES, free // 10)


def check_room(
    needed: Estimate, *, folder: Path | None, budget: int | None
) -> None:
    """Check before the work that activations fit, and log their size.

    Ranks on one machine share its disk.

    Args:
        needed: Sizes of this rank.
        folder: Folder for spilled activations; None is the temporary folder.
        budget: ``cache_disk_bytes``, for each rank.

    Raises:
        ValueError: If they don't fit; on every rank.
    """
    folder = Path(tempfile.gettempdir()) if folder is None else folder
    refusal = None
    ranks = gathered((platform.node(), needed.disk))
    here = [disk for node, disk in ranks if node == platform.node()]
    free = room(folder, None)
    if needed.disk > room(folder, budget) or sum(here) > free:
        refusal = _refusal(
            sum(here), folder=folder, budget=budget, ranks=len(here)
        )
    refused = [text for text in gathered(refusal) if text is not None]
    if refused:
        raise ValueError(refused[0])
    if needed.disk:
        logger.info(
            'activations take about %.0f MiB in memory and %.0f MiB in %s, '
            'where %.0f MiB are free',
            needed.memory / MIB,
            needed.disk / MIB,
            folder,
            free / MIB,
        )
    else:
        logger.info(
            'activations take about %.0f MiB in memory', needed.memory / MIB
        )


def _refusal(
    disk: int, *, folder: Path, budget: int | None, ranks: int
) -> str:
    limit = (
        ''
        if budget is None
        else (
            f' and reconstruction.cache_disk_bytes allows '
            f'{budget / MIB:,.0f} MiB'
            + (' for each rank' if ranks > 1 else '')
        )
    )
    return (
        f'the activations of the calibration images need about '
        f'{disk / MIB:,.0f} MiB on disk, but {folder} has '
        f'{room(folder, None) / MIB:,.0f} MiB available{limit}: use fewer '
        'images, point reconstruction.cache_dir at a larger disk, or raise '
        'reconstruction.cache_bytes, the part held in memory'
    )


def disk_full(path: Path, size: int, error: OSError) -> OSError | None:
    """Return the error to raise if the disk is full, else None."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    return OSError(
        errno.ENOSPC,
        f'the disk is full: an activation of {size:,} bytes does not fit; '
        'use fewer images, another reconstruction.cache_dir, or a larger '
        'reconstruction.cache_bytes',
        str(path),
    )


def new_folder(parent: Path | None) -> Path:
    """Make a folder for spilled activations, named after this process."""
    if parent is not None:
        parent.mkdir(parents=True, exist_ok=True)
    return Path(
        tempfile.mkdtemp(
            prefix=f'{PREFIX}-{_place()}-{os.getpid()}-', dir=parent
        )
    )


def remove_abandoned(parent: Path | None) -> list[Path]:
    """Remove the folders of processes that have ended.

    Args:
        parent: Folder to search; None is the temporary folder.

    Returns:
        The removed folders.
    """
    parent = Path(tempfile.gettempdir()) if parent is None else parent
    removed = []
    for folder in _folders(parent):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            logger.info('removed %s, left over from a killed run', folder)
            removed.append(folder)
    return removed


def _folders(parent: Path) -> Iterator[Path]:
    """Yield abandoned folders of this user."""
    name = re.compile(f'{PREFIX}-{_place()}-([0-9]+)-')
    if not parent.is_dir() or not hasattr(os, 'getuid'):
        return
    for folder in list(parent.iterdir()):
        match = name.match(folder.name)
        if match is None or process_runs(int(match[1])):
            continue
        state = folder.lstat()
        if folder.is_dir() and state.st_uid == os.getuid():
            yield folder


def _place() -> str:
    """Return a name of this process id namespace: a machine or a container.

    Containers may share a temporary folder and even a host name, but not
    process ids.
    """
    space = Path('/proc/self/ns/pid')
    names = platform.node(), str(space.readlink()) if space.exists() else ''
    return hashlib.sha256(' '.join(names).encode()).hexdigest()[:12]
