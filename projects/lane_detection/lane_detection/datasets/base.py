"""Base class of the lane data sets: frames, ids and the input's crop."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset

from .lane_files import read_culane, read_curvelanes, rows_to_lanes

__all__ = ['LaneDataset', 'read_lanes']


def read_lanes(info: Mapping[str, Any]) -> list[np.ndarray]:
    """Read the lanes of one image, in pixels of the annotations' frame.

    Args:
        info: An item of a :class:`LaneDataset`: ``lane_format`` and
            ``lanes_file``, or ``lane_rows`` and ``h_samples``.

    Raises:
        KeyError: If the item has no lanes.
    """
    name = info.get('lane_format')
    if name == 'culane':
        return read_culane(info['lanes_file'])
    if name == 'curvelanes':
        return read_curvelanes(info['lanes_file'])
    if name == 'tusimple':
        return rows_to_lanes(info['lane_rows'], info['h_samples'])
    raise KeyError(
        f'lane_format={name!r} of {info.get("img_path")} is not culane, '
        'tusimple or curvelanes: use a lane data set'
    )


class LaneDataset(BaseDataset):
    """Images with lanes.

    Args:
        input_frame: The network's input, for all pipelines of this data set:
            ``top``, the first row of the crop in original pixels, or (height
            of the original, row) pairs; ``bottom``, the row after the last
            one in the same form, missing for no limit; ``size``, (h, w) of
            the input; ``reduce``, 1, 2 or 4, the divisor at which images are
            read. Defaults of LoadLaneImage, LaneCrop and LaneResize.
        label_shape: Height and width of the annotations' frame; None if it is
            that of the image file. An image of another size still shows the
            whole frame, smaller or larger.
        num_slots: Slots of segmentation models.
        category: Category of every image; None for none or the data set's
            own.
        check_files: Whether to check immediately that the first image exists,
            so that a wrong root shows before a run starts.
        kwargs: Further arguments of BaseDataset.
    """

    def __init__(
        self,
        *args: Any,
        input_frame: Mapping[str, Any] | None = None,
        label_shape: tuple[int, int] | None = None,
        num_slots: int = 4,
        category: str | None = None,
        check_files: bool = True,
        **kwargs: Any,
    ) -> None:
        self.input_frame = None if input_frame is None else dict(input_frame)
        self.label_shape = None if label_shape is None else tuple(label_shape)
        self.num_slots = num_slots
        self.category = category
        self.check_files = check_files
        super().__init__(*args, **kwargs)

    def get_data_info(self, idx: int) -> dict[str, Any]:
        """Return one item, with the keys common to all items."""
        info: dict[str, Any] = super().get_data_info(idx)
        info['num_slots'] = self.num_slots
        if self.input_frame is not None:
            info['input_frame'] = dict(self.input_frame)
        if self.label_shape is not None:
            info['label_shape'] = self.label_shape
        if self.category is not None:
            info['category'] = self.category
        return info

    def filter_data(self) -> list[dict[str, Any]]:
        """Drop images with fewer than ``filter_cfg.min_lanes`` lanes.

        ``filter_cfg = dict(filter_empty_gt=True)`` means at least one.
        """
        config = self.filter_cfg or {}
        least = config.get(
            'min_lanes', int(bool(config.get('filter_empty_gt')))
        )
        if self.test_mode or least < 1:
            return list(self.data_list)
        return [
            info for info in self.data_list if len(read_lanes(info)) >= least
        ]

    def checked(self, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the items, checking the first image.

        Raises:
            ValueError: If there are no items.
            FileNotFoundError: If the first image is missing.
        """
        if not items:
            raise ValueError(f'ann_file={self.ann_file} lists no images')
        first = items[0]['img_path']
        if self.check_files and not Path(first).is_file():
            raise FileNotFoundError(
                f'{first} is missing, the first image of '
                f'ann_file={self.ann_file}: check data_root='
                f'{self.data_root!r} and data_prefix={self.data_prefix}'
            )
        return items

    def below(self, name: str, *, prefix: str) -> str:
        """Join a prefix and a name from a list, with or without slash.

        Args:
            name: Path as spelled in the list.
            prefix: Key of ``data_prefix``.
        """
        root = self.data_prefix.get(prefix) or self.data_root or ''
        return os.path.join(root, name.lstrip('/'))  # noqa: PTH118
