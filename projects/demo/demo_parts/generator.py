"""A detection data set out of nothing but a seed.

Images and boxes depend on the seed alone.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from demo_parts.scene import HEIGHT, WIDTH, Box, make_image
from demo_parts.shapes import CLASSES

# Images of each split. The seed of image i is (SEED, split, i): images of
# two splits never share one.
SPLITS = {'train': 600, 'test': 100}
SEED = 2026
# Raise it whenever the images change: older sets are then made anew.
VERSION = 4


def draw_file(
    folder: Path, *, split: str, index: int
) -> list[tuple[int, Box]]:
    """Write one image; return class index and box of each part.

    Args:
        folder: Of the data set.
        split: One of ``SPLITS``.
        index: Of the image in its split.
    """
    rng = np.random.default_rng((SEED, list(SPLITS).index(split), index))
    image, parts = make_image(rng)
    cv2.imwrite(str(folder / file_name(split, index=index)), image)
    return parts


def file_name(split: str, *, index: int) -> str:
    """Return an image's path in the data set."""
    return f'{split}/{index:04d}.png'


def coco_content(
    split: str, *, parts: Sequence[Sequence[tuple[int, Box]]]
) -> dict[str, Any]:
    """Return the annotations of a split in COCO's layout.

    Args:
        split: One of ``SPLITS``.
        parts: Class index and box of each part, for each image.
    """
    images = [
        {
            'id': index,
            'file_name': file_name(split, index=index),
            'width': WIDTH,
            'height': HEIGHT,
        }
        for index in range(len(parts))
    ]
    found = [(i, *part) for i, image in enumerate(parts) for part in image]
    annotations = [
        {
            'id': number,
            'image_id': index,
            'category_id': label + 1,
            'bbox': list(box),
            'area': box[2] * box[3],
            'iscrowd': 0,
        }
        for number, (index, label, box) in enumerate(found, start=1)
    ]
    categories = [
        {'id': number, 'name': name}
        for number, name in enumerate(CLASSES, start=1)
    ]
    return {
        'images': images,
        'annotations': annotations,
        'categories': categories,
    }


def make_split(folder: Path, *, split: str, num_images: int) -> None:
    """Write the images and the COCO annotations of one split."""
    (folder / split).mkdir(parents=True)
    draw = partial(_draw_indexed, folder, split)
    with ProcessPoolExecutor(max_workers=os.cpu_count()) as pool:
        parts = list(pool.map(draw, range(num_images), chunksize=25))
    content = coco_content(split, parts=parts)
    (folder / f'{split}.json').write_text(json.dumps(content))


def _draw_indexed(
    folder: Path, split: str, index: int
) -> list[tuple[int, Box]]:
    return draw_file(folder, split=split, index=index)


def generate(folder: Path, *, splits: dict[str, int] | None = None) -> bool:
    """Write the data set, unless this version of it is there.

    Args:
        folder: Where to; replaced as a whole.
        splits: Images of each split; None takes ``SPLITS``.

    Returns:
        Whether it was made anew.
    """
    splits = SPLITS if splits is None else splits
    wanted = {'version': VERSION, 'seed': SEED, 'splits': splits}
    stamp = folder / 'generator.json'
    if stamp.exists() and json.loads(stamp.read_text()) == wanted:
        return False
    shutil.rmtree(folder, ignore_errors=True)
    for split, num_images in splits.items():
        make_split(folder, split=split, num_images=num_images)
    # Written last: a set that was cut short is made anew.
    stamp.write_text(json.dumps(wanted))
    return True
