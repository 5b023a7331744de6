"""Pack an image and its lanes for the model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS
from mmengine.structures import InstanceData

from ..geometry import is_visible
from ..structures import LaneDataSample
from .frame import open_frame

__all__ = ['META_KEYS', 'PackLaneInputs']

META_KEYS = (
    'img_id',
    'img_path',
    'raw_file',
    'ori_shape',
    'img_shape',
    'crop',
    'category',
    'h_samples',
    'num_absent_lanes',
    'flip',
    'lane_frame',
)


@TRANSFORMS.register_module()
class PackLaneInputs(BaseTransform):
    """Return ``inputs`` (3, h, w) and ``data_samples``, a LaneDataSample.

    Lanes that moved with the image are dropped if no part of them is left in
    the input.

    Args:
        meta_keys: Keys of the data sample's metainfo; None if the
            results lack it.

    Required keys: img. Optional: gt_lanes, gt_slots.
    """

    def __init__(self, *, meta_keys: tuple[str, ...] = META_KEYS) -> None:
        self.meta_keys = tuple(meta_keys)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Pack image and lanes."""
        open_frame(results)
        image = np.ascontiguousarray(results['img'].transpose(2, 0, 1))
        sample = LaneDataSample()
        if 'gt_lanes' in results:
            sample.gt_lanes = self.pack_lanes(results)
        meta = {key: results.get(key) for key in self.meta_keys}
        meta['flip'] = bool(results.get('flip', False))
        meta['lane_frame'] = results.get('lane_frame', 'original')
        sample.set_metainfo(meta)
        return {'inputs': torch.from_numpy(image), 'data_samples': sample}

    def pack_lanes(self, results: dict[str, Any]) -> InstanceData:
        """Return points and slots of the visible lanes."""
        points = list(results['gt_lanes'])
        slots = np.asarray(
            results.get('gt_slots', np.full(len(points), -1)), np.int64
        )
        if results.get('lane_frame') == 'input':
            shape = results['img'].shape[:2]
            kept = [
                i
                for i, lane in enumerate(points)
                if is_visible(lane, shape=shape)
            ]
            points = [points[i] for i in kept]
            slots = slots[kept]
        return InstanceData(points=points, slots=torch.from_numpy(slots))
