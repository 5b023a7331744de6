"""Write a set of road images in a data set's layout."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from .layouts import LAYOUTS, Item

__all__ = ['RoadSet', 'generate']

# Increase it whenever the images change, so that older sets are refused.
VERSION = 1
STAMP = 'roads.json'
SPLITS = ('train', 'val')


@dataclass(frozen=True)
class RoadSet:
    """Settings that determine a set of images.

    Args:
        num_train: Images of the training split.
        num_val: Images of the validation split.
        layout: ``'culane'`` or ``'tusimple'``.
        scale: Size of the images relative to the annotations' frame, which is
            1640x590 or 1280x720.
        seed: Images depend only on seed, split and number.

    Raises:
        ValueError: If a value is invalid.
    """

    num_train: int = 1500
    num_val: int = 500
    layout: str = 'culane'
    scale: float = 0.5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.layout not in LAYOUTS:
            raise ValueError(
                f'layout={self.layout!r} is not one of {sorted(LAYOUTS)}'
            )
        if not 0.1 <= self.scale <= 2:
            raise ValueError(f'scale={self.scale} must lie in [0.1, 2]')
        if min(self.num_train, self.num_val) < 1:
            raise ValueError(
                f'num_train={self.num_train} and num_val={self.num_val} must '
                'be at least 1'
            )


def generate(out: str | Path, roads: RoadSet, *, workers: int = 1) -> bool:
    """Write the set, unless it exists.

    The folder appears complete or not at all, so that several processes may
    request it at the same time.

    Args:
        out: The set's folder.
        roads: Settings of the set.
        workers: Processes to draw with; the images don't depend on it.

    Returns:
        Whether it was written.

    Raises:
        FileExistsError: If the folder holds something else.
    """
    out = Path(out)
    if is_there(out, roads):
        return False
    draft = out.with_name(f'.{out.name}.{os.getpid()}')
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        layout = LAYOUTS[roads.layout]
        for split in SPLITS:
            number = roads.num_train if split == 'train' else roads.num_val
            draw = partial(draw_one, draft, roads, split)
            layout.finish(draft, split, list(mapped(draw, number, workers)))
        stamp = {'version': VERSION, **asdict(roads)}
        (draft / STAMP).write_text(json.dumps(stamp), encoding='utf-8')
        return publish(draft, out, roads)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def publish(draft: Path, out: Path, roads: RoadSet) -> bool:
    """Rename a finished set; return False if another process was faster."""
    try:
        draft.rename(out)
    except OSError:
        if not is_there(out, roads):
            raise
        return False
    return True


def is_there(out: Path, roads: RoadSet) -> bool:
    """Return whether a folder holds this set.

    Raises:
        FileExistsError: If it holds something else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    wanted = {'version': VERSION, **asdict(roads)}
    stamp = out / STAMP
    found = json.loads(stamp.read_text()) if stamp.is_file() else None
    if found != wanted:
        raise FileExistsError(
            f'out={out} holds {found or "other files"} instead of {wanted}: '
            'remove it, or choose another folder'
        )
    return True


def draw_one(root: Path, roads: RoadSet, split: str, index: int) -> Item:
    """Draw and write one image and its annotations."""
    rng = np.random.default_rng((roads.seed, SPLITS.index(split), index))
    return LAYOUTS[roads.layout].write(
        root, split, index, rng, scale=roads.scale
    )


def mapped(
    draw: Callable[[int], Item], number: int, workers: int
) -> Iterable[Item]:
    """Apply ``draw`` to 0 ... number - 1, in order."""
    if workers <= 1:
        return map(draw, range(number))
    # Spawned: a forked copy of a process with threads may hang.
    pool = ProcessPoolExecutor(workers, mp_context=get_context('spawn'))
    with pool:
        return list(pool.map(draw, range(number), chunksize=16))
