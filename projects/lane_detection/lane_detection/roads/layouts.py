"""The folders and files of CULane and of TuSimple."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from ..datasets.culane import CULANE_CATEGORIES
from ..datasets.lane_files import lanes_to_rows, write_culane
from .render import render
from .scene import CULANE_FRAME, TUSIMPLE_FRAME, draw_scene, lane_points

__all__ = ['LAYOUTS', 'CULaneLayout', 'Item', 'Layout', 'TuSimpleLayout']

MASK_WIDTH = 16  # pixels of the annotations' frame, as in laneseg_label_w16


@dataclass(frozen=True)
class Item:
    """Entry of an image in the lists of a set.

    Attributes:
        name: Path below the set's folder.
        category: CULane category.
        label: Existence flags, or TuSimple's JSON line.
    """

    name: str
    category: str
    label: Any


class Layout(Protocol):
    """Interface that writes images one by one, then the lists."""

    def write(
        self,
        root: Path,
        split: str,
        index: int,
        rng: np.random.Generator,
        *,
        scale: float,
    ) -> Item:
        """Draw and write an image."""
        ...

    def finish(self, root: Path, split: str, items: Sequence[Item]) -> None:
        """Write the lists of a split."""
        ...


def write_jpeg(
    image: np.ndarray, path: Path, rng: np.random.Generator
) -> None:
    """Write a JPEG file of random quality.

    Raises:
        OSError: If it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    quality = int(rng.integers(75, 96))
    if not cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, quality]):
        raise OSError(f'{path} cannot be written')


class CULaneLayout:
    """Images with ``.lines.txt`` next to them, masks, lists, categories."""

    def write(
        self,
        root: Path,
        split: str,
        index: int,
        rng: np.random.Generator,
        *,
        scale: float,
    ) -> Item:
        """Draw and write an image, its lanes and its mask of slots."""
        scene = draw_scene(rng, frame=CULANE_FRAME)
        image = render(scene, rng, scale=scale)
        lanes = lane_points(scene)
        stem = f'driver_{split}/{index // 500:04d}.MP4/{index:05d}'
        write_jpeg(image, root / f'{stem}.jpg', rng)
        write_culane(
            [points for _, points in lanes], root / f'{stem}.lines.txt'
        )
        self.write_mask(
            root / f'laneseg_label_w16/{stem}.png', lanes, image.shape[:2]
        )
        slots = {slot for slot, _ in lanes}
        flags = ' '.join(str(int(slot in slots)) for slot in range(4))
        return Item(f'{stem}.jpg', scene.category, flags)

    def write_mask(
        self,
        path: Path,
        lanes: Sequence[tuple[int, np.ndarray]],
        shape: tuple[int, ...],
    ) -> None:
        """Write the slots plus 1 as the values of a mask."""
        mask = np.zeros(shape, dtype=np.uint8)
        height, width = CULANE_FRAME.shape
        scale = (shape[1] / width, shape[0] / height)
        for slot, points in lanes:
            cv2.polylines(
                mask,
                [(points * scale).round().astype(np.int32)],
                False,
                slot + 1,
                max(round(MASK_WIDTH * scale[0]), 1),
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), mask)

    def finish(self, root: Path, split: str, items: Sequence[Item]) -> None:
        """Write ``list/*.txt``; categories for the validation split."""
        folder = root / 'list'
        write_list(folder / f'{split}.txt', [f'/{i.name}' for i in items])
        write_list(
            folder / f'{split}_gt.txt',
            [
                f'/{item.name} /laneseg_label_w16/'
                f'{Path(item.name).with_suffix(".png").as_posix()} '
                f'{item.label}'
                for item in items
            ],
        )
        if split != 'val':
            return
        for number, category in enumerate(CULANE_CATEGORIES):
            names = [f'/{i.name}' for i in items if i.category == category]
            write_list(
                folder / f'test_split/test{number}_{category}.txt', names
            )


class TuSimpleLayout:
    """``clips/`` and a file of JSON lines for each split."""

    def write(
        self,
        root: Path,
        split: str,
        index: int,
        rng: np.random.Generator,
        *,
        scale: float,
    ) -> Item:
        """Draw and write an image."""
        scene = draw_scene(rng, frame=TUSIMPLE_FRAME)
        image = render(scene, rng, scale=scale)
        name = f'clips/{split}/{index:05d}/20.jpg'
        write_jpeg(image, root / name, rng)
        rows = list(reversed(TUSIMPLE_FRAME.rows))
        lanes = lanes_to_rows(
            [points for _, points in lane_points(scene)],
            rows,
            width=TUSIMPLE_FRAME.shape[1],
        )
        return Item(
            name,
            scene.category,
            {'raw_file': name, 'lanes': lanes, 'h_samples': rows},
        )

    def finish(self, root: Path, split: str, items: Sequence[Item]) -> None:
        """Write ``label_data.json`` or ``test_label.json``."""
        name = 'label_data.json' if split == 'train' else 'test_label.json'
        write_list(root / name, [json.dumps(item.label) for item in items])


def write_list(path: Path, lines: Sequence[str]) -> None:
    """Write lines of text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(f'{line}\n' for line in lines), encoding='utf-8')


LAYOUTS: dict[str, Layout] = {
    'culane': CULaneLayout(),
    'tusimple': TuSimpleLayout(),
}
