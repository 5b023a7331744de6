"""CULane: 1640x590 frames, up to four lanes, nine test categories."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmdet.registry import DATASETS

from .base import LaneDataset, read_lanes
from .lane_files import read_lines

__all__ = ['CULANE_CATEGORIES', 'CULaneDataset', 'parse_list_line']

# Files of list/test_split are named "test<number>_<name>.txt".
CULANE_CATEGORIES = (
    'normal',
    'crowd',
    'hlight',
    'shadow',
    'noline',
    'arrow',
    'curve',
    'cross',
    'night',
)


def parse_list_line(line: str) -> tuple[str, tuple[int, ...] | None]:
    """Split a line of a list into the image and its existence flags.

    ``/driver/clip/1.jpg`` or, in the ``*_gt.txt`` lists, ``/driver/clip/1.jpg
    /laneseg/driver/clip/1.png 0 1 1 0``.

    Returns:
        Path without the leading slash, and the flags or None.

    Raises:
        ValueError: If the line is malformed.
    """
    words = line.split()
    name = words[0].lstrip('/')
    flags = words[2:]
    if not flags:
        return name, None
    if any(flag not in ('0', '1') for flag in flags):
        raise ValueError(
            f'list line {line!r} is neither "/image.jpg" nor "/image.jpg '
            '/mask.png 0 1 1 0"'
        )
    return name, tuple(int(flag) for flag in flags)


@DATASETS.register_module()
class CULaneDataset(LaneDataset):
    """Images of a list, each with a ``.lines.txt`` next to it.

    Lists spell paths with or without a leading slash; ``*_gt.txt`` lists also
    name the slots that hold a lane, which are otherwise derived from where
    the lanes meet the bottom of the image. Lane files are read with their
    image.

    Args:
        label_shape: See LaneDataset; None for annotations in pixels of their
            image.
        category_dir: Folder of the category lists, relative to the data root,
            e.g. ``'list/test_split'``; None gives images no category.
        expected_lanes: Number of annotated lanes in the whole list, checked
            at the start; None skips the check. The official test set has
            104,886; F1 scores with an older archive, which has fewer, are not
            comparable.
        kwargs: Further arguments of LaneDataset.
    """

    METAINFO = dict(dataset_type='culane', classes=('lane',))  # noqa: RUF012

    def __init__(
        self,
        *args: Any,
        label_shape: tuple[int, int] | None = (590, 1640),
        category_dir: str | None = None,
        expected_lanes: int | None = None,
        **kwargs: Any,
    ) -> None:
        self.category_dir = category_dir
        self.expected_lanes = expected_lanes
        super().__init__(*args, label_shape=label_shape, **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Return an item per line of the list.

        Raises:
            FileNotFoundError: If the list or the first image is missing.
            ValueError: If the list is empty or malformed, or the number of
                lanes isn't the expected one.
        """
        lines = read_lines(
            self.ann_file,
            what='the list of images; CULane has list/'
            'train.txt, train_gt.txt, val.txt, val_gt.txt and test.txt below '
            'its root, data_root; drawn roads are made by `python -m '
            'lane_detection.roads --out DATA_ROOT`',
        )
        categories = self.load_categories()
        items = [self.item(line, categories) for line in lines]
        self.checked(items)
        self.check_number(items)
        return items

    def item(self, line: str, categories: dict[str, str]) -> dict[str, Any]:
        """Return the item of a line of the list."""
        name, flags = parse_list_line(line)
        path = self.below(name, prefix='img')
        stem = Path(name).with_suffix('')
        return {
            'img_id': name,
            'img_path': path,
            'raw_file': name,
            'lane_format': 'culane',
            'lanes_file': self.below(f'{stem}.lines.txt', prefix='lanes'),
            'existence': flags,
            'category': categories.get(name),
        }

    def load_categories(self) -> dict[str, str]:
        """Return the category of each image of the category lists.

        Raises:
            FileNotFoundError: If there are no such lists.
        """
        if self.category_dir is None:
            return {}
        folder = Path(self.data_root or '') / self.category_dir
        files = sorted(folder.glob('test*_*.txt'))
        if not files:
            raise FileNotFoundError(
                f'{folder} has no lists test<number>_<category>.txt: check '
                f'category_dir={self.category_dir!r}, or set it to None'
            )
        return {
            parse_list_line(line)[0]: path.stem.partition('_')[2]
            for path in files
            for line in read_lines(path, what='a category list')
        }

    def check_number(self, items: Sequence[dict[str, Any]]) -> None:
        """Compare the number of annotated lanes with the expected one.

        Raises:
            ValueError: If they differ.
        """
        if self.expected_lanes is None:
            return
        found = sum(len(read_lanes(item)) for item in items)
        if found != self.expected_lanes:
            raise ValueError(
                f'{self.ann_file} has {found} lanes and not expected_lanes='
                f'{self.expected_lanes}: with the official lists this means '
                'another archive of annotations (the current one is '
                'annotations_new.tar.gz); with your own, set '
                'expected_lanes=None'
            )
