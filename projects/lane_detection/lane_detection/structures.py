"""Data sample of an image: annotated and predicted lanes."""

from __future__ import annotations

from mmengine.structures import BaseDataElement, InstanceData

__all__ = ['LaneDataSample']


class LaneDataSample(BaseDataElement):
    """Lanes of one image.

    A lane is a polyline, (n, 2) float32, x and y in pixels, from the bottom
    of the image upwards. Pixel i covers [i, i + 1), so an image of height h
    ends at y = h.

    ``gt_lanes`` is an InstanceData of

    - ``points``: list of (n, 2) arrays, in the pixels given by the metainfo
      key ``lane_frame``: ``'original'``, or ``'input'`` if a training
      pipeline moved the lanes together with the image;
    - ``slots``: (L,) int64, the lane's place in the fixed order of
      segmentation models, left to right; -1 for none.

    ``pred_lanes`` is an InstanceData of

    - ``points``: list of (n, 2) arrays in original pixels;
    - ``scores``: (L,) in [0, 1].

    Metainfo: img_id (path below the data root), img_path, raw_file, ori_shape
    (h, w of the frame of the annotations), img_shape (h, w of the input), crop
    (x0, y0, x1, y1: what the input shows, in original pixels), category,
    h_samples (TuSimple's rows), num_absent_lanes (of its annotations,
    without any point), flip, lane_frame.
    """

    @property
    def gt_lanes(self) -> InstanceData:
        """Annotated lanes."""
        return self._gt_lanes

    @gt_lanes.setter
    def gt_lanes(self, value: InstanceData) -> None:
        self.set_field(value, '_gt_lanes', dtype=InstanceData)

    @gt_lanes.deleter
    def gt_lanes(self) -> None:
        del self._gt_lanes

    @property
    def pred_lanes(self) -> InstanceData:
        """Predicted lanes."""
        return self._pred_lanes

    @pred_lanes.setter
    def pred_lanes(self, value: InstanceData) -> None:
        self.set_field(value, '_pred_lanes', dtype=InstanceData)

    @pred_lanes.deleter
    def pred_lanes(self) -> None:
        del self._pred_lanes
