"""CurveLanes: large frames of several sizes, any number of lanes."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from mmdet.registry import DATASETS

from .base import LaneDataset
from .lane_files import read_lines

__all__ = ['CurveLanesDataset']


@DATASETS.register_module()
class CurveLanesDataset(LaneDataset):
    """Images of a list; lanes in ``labels/NAME.lines.json``.

    A line of the list is ``images/NAME.jpg``, relative to the folder of the
    split, ``data_prefix['img']``. Annotations are in pixels of their image,
    of which there are three sizes, so ``input_frame`` needs pairs: ``top=[
    (1440, 640), (720, 368), (660, 180)]``.

    Args:
        kwargs: Further arguments of LaneDataset.
    """

    METAINFO = dict(  # noqa: RUF012
        dataset_type='curvelanes', classes=('lane',)
    )

    def load_data_list(self) -> list[dict[str, Any]]:
        """Return an item per line of the list.

        Raises:
            FileNotFoundError: If the list or the first image is missing.
            ValueError: If the list is empty.
        """
        lines = read_lines(
            self.ann_file,
            what='the list of images; CurveLanes has '
            'train/train.txt and valid/valid.txt',
        )
        return self.checked([self.item(line) for line in lines])

    def item(self, line: str) -> dict[str, Any]:
        """Return the item of a line of the list."""
        name = line.lstrip('/')
        path = PurePosixPath(name)
        if len(path.parts) == 1:
            # Some lists hold bare names.
            path = 'images' / path
        # The last folder named "images" is next to "labels".
        parts = list(path.parts)
        if 'images' in parts:
            place = len(parts) - 1 - parts[::-1].index('images')
            parts[place] = 'labels'
        label = PurePosixPath(*parts).with_suffix('.lines.json')
        return {
            'img_id': str(path),
            'img_path': self.below(str(path), prefix='img'),
            'raw_file': str(path),
            'lane_format': 'curvelanes',
            'lanes_file': self.below(str(label), prefix='img'),
            'category': None,
        }
