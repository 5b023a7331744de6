"""TuSimple: 1280x720 frames, lanes as x in fixed rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from mmdet.registry import DATASETS
from mmengine.fileio import join_path
from mmengine.utils import is_abs

from .base import LaneDataset
from .lane_files import read_lines

__all__ = ['TuSimpleDataset']


@DATASETS.register_module()
class TuSimpleDataset(LaneDataset):
    """Images of one or more files of JSON lines.

    A line is ``{"raw_file": "clips/.../20.jpg", "lanes": [[x or -2, ...],
    ...], "h_samples": [y, ...]}``.

    Args:
        ann_file: The file or files; the training set has three.
        label_shape: As in LaneDataset.
        label_scale: Factor from the annotations' x and y to pixels of
            ``label_shape``, for annotations of reduced images.
        num_slots: Slots of segmentation models; some images have five lanes.
        kwargs: Further arguments of LaneDataset.
    """

    METAINFO = dict(  # noqa: RUF012
        dataset_type='tusimple', classes=('lane',)
    )

    def __init__(
        self,
        ann_file: str | Sequence[str] = '',
        *args: Any,
        label_shape: tuple[int, int] | None = (720, 1280),
        label_scale: float = 1.0,
        num_slots: int = 6,
        **kwargs: Any,
    ) -> None:
        if label_scale <= 0:
            raise ValueError(f'label_scale={label_scale} must be positive')
        self.label_scale = label_scale
        super().__init__(
            ann_file,
            *args,
            label_shape=label_shape,
            num_slots=num_slots,
            **kwargs,
        )

    def _join_prefix(self) -> None:
        """Join the root with the files and with the image folder."""
        names = (
            [self.ann_file]
            if isinstance(self.ann_file, str)
            else list(self.ann_file)
        )
        self.ann_file = ''
        super()._join_prefix()
        root = self.data_root or ''
        self.ann_file = [
            name if is_abs(name) or not root else join_path(root, name)
            for name in names
        ]

    def load_data_list(self) -> list[dict[str, Any]]:
        """Return an item per line of the files.

        Raises:
            FileNotFoundError: If a file or the first image is missing.
            ValueError: If a file is empty or malformed.
        """
        items = []
        for path in self.ann_file:
            lines = read_lines(
                path,
                what='the annotations; TuSimple has label_data_0313, '
                '_0531, _0601.json (train_set) and test_label.json',
            )
            items += [
                self.item(line, f'{path}:{number}')
                for number, line in enumerate(lines, start=1)
            ]
        return self.checked(items)

    def item(self, line: str, where: str) -> dict[str, Any]:
        """Return the item of one JSON line.

        Raises:
            ValueError: If the line is malformed or holds no lanes.
        """
        try:
            label = json.loads(line)
            name = str(label['raw_file']).lstrip('/')
            lanes, rows = label['lanes'], label['h_samples']
            lengths = {len(lane) for lane in lanes}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f'{where} is not {{"raw_file": ..., "lanes": [[...]], '
                f'"h_samples": [...]}} ({error!r}): lists of test images '
                'without lanes (test_tasks_*.json) are no annotations'
            ) from None
        if lengths - {len(rows)}:
            raise ValueError(
                f'{where} has lanes of {sorted(lengths)} values and '
                f'{len(rows)} rows in h_samples: they must be equal'
            )
        return {
            'img_id': name,
            'img_path': self.below(name, prefix='img'),
            'raw_file': name,
            'lane_format': 'tusimple',
            'lane_rows': [[self.scaled(x) for x in lane] for lane in lanes],
            'h_samples': [self.scaled(y) for y in rows],
            # Lost in polylines, but counted by the official script.
            'num_absent_lanes': sum(
                all(x < 0 for x in lane) for lane in lanes
            ),
            'category': None,
        }

    def scaled(self, value: float) -> float:
        """Scale a coordinate, keeping the mark of absent points."""
        if value < 0 or self.label_scale == 1:
            return value
        return value * self.label_scale
