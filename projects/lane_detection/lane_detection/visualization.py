"""Draw lanes on images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.runner import Runner

from .geometry import lane_frame
from .structures import LaneDataSample

__all__ = ['LaneVisualizationHook', 'draw_lanes', 'draw_sample']

# BGR, one per predicted lane from left to right.
COLORS = (
    (66, 133, 244),
    (76, 175, 80),
    (240, 100, 60),
    (200, 80, 200),
    (60, 200, 230),
    (230, 200, 60),
)
TRUTH_COLOR = (255, 255, 255)


def draw_lanes(
    image: np.ndarray,
    lanes: Sequence[np.ndarray],
    *,
    colors: Sequence[tuple[int, int, int]] = COLORS,
    width: int = 4,
    scale: tuple[float, float] = (1.0, 1.0),
    dashed: bool = False,
) -> np.ndarray:
    """Draw polylines on a copy of an image.

    Args:
        image: (h, w, 3) uint8, BGR.
        lanes: (n, 2) arrays, x and y.
        colors: Colors of the lanes from left to right, reused in turn.
        width: Line width in pixels of the image.
        scale: Pixels of the image per unit of x and of y.
        dashed: Whether to draw only every other piece.
    """
    image = np.ascontiguousarray(image).copy()
    lanes = [
        np.asarray(lane, dtype=np.float64) for lane in lanes if len(lane) > 1
    ]
    lanes.sort(key=lambda lane: float(lane[0, 0]))
    for index, lane in enumerate(lanes):
        points = (lane * scale - 0.5) * 16
        # OpenCV overflows far outside the image, so such points are clipped.
        points = points.clip(-(2**19), 2**19).round().astype(np.int32)
        pieces = (
            [points[i : i + 2] for i in range(0, len(points) - 1, 2)]
            if dashed
            else [points]
        )
        cv2.polylines(
            image,
            pieces,
            False,
            colors[index % len(colors)],
            width,
            lineType=cv2.LINE_AA,
            shift=4,
        )
    return image


def draw_sample(
    image: np.ndarray,
    sample: LaneDataSample,
    *,
    score_thr: float = 0.0,
    truth: bool = True,
    width: int = 4,
) -> np.ndarray:
    """Draw a sample's predictions, and its annotations dashed in white.

    Args:
        image: (h, w, 3) uint8, BGR: the image file, in any size.
        sample: Lanes in original pixels.
        score_thr: Predictions with a lower score are omitted.
        truth: Whether to draw annotations, if they are in original pixels.
        width: Line width in pixels of the image.
    """
    height, across = sample.metainfo.get('ori_shape', image.shape)[:2]
    scale = (image.shape[1] / across, image.shape[0] / height)
    if truth and 'gt_lanes' in sample and lane_frame(sample) == 'original':
        image = draw_lanes(
            image,
            sample.gt_lanes.points,
            colors=[TRUTH_COLOR],
            width=max(width // 2, 1),
            scale=scale,
            dashed=True,
        )
    if 'pred_lanes' not in sample:
        return image
    lanes = sample.pred_lanes
    scores = np.asarray(
        [float(score) for score in lanes.get('scores', [1.0] * len(lanes))]
    )
    kept = [
        lane
        for lane, score in zip(lanes.points, scores, strict=True)
        if score >= score_thr
    ]
    return draw_lanes(image, kept, width=width, scale=scale)


@HOOKS.register_module()
class LaneVisualizationHook(Hook):
    """Write pictures of the lanes found in validation and test runs.

    Args:
        draw: Whether to draw; mm's ``--show-dir`` turns it on.
        interval: Draw every n-th image.
        max_images: Maximum number of pictures per run; None for no limit.
        score_thr: Predictions with a lower score are omitted.
        truth: Whether to also draw annotations.
        line_width: Line width in pixels of the image.
        test_out_dir: Folder for the pictures, relative to the runner's.
    """

    priority = 'LOW'

    def __init__(
        self,
        *,
        draw: bool = False,
        interval: int = 1,
        max_images: int | None = None,
        score_thr: float = 0.0,
        truth: bool = True,
        line_width: int = 4,
        test_out_dir: str = 'lanes',
    ) -> None:
        if interval < 1:
            raise ValueError(f'interval={interval} must be at least 1')
        self.draw = draw
        self.interval = interval
        self.max_images = max_images
        self.score_thr = score_thr
        self.truth = truth
        self.line_width = line_width
        self.test_out_dir = test_out_dir
        self.seen = 0
        self.written = 0

    def before_val_epoch(self, runner: Runner) -> None:
        """Restart counting."""
        self.seen = self.written = 0

    def before_test_epoch(self, runner: Runner) -> None:
        """Restart counting."""
        self.seen = self.written = 0

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[LaneDataSample] | None = None,
    ) -> None:
        """Draw a batch."""
        self.draw_batch(runner, outputs or (), folder='val')

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Sequence[LaneDataSample] | None = None,
    ) -> None:
        """Draw a batch."""
        self.draw_batch(runner, outputs or (), folder='test')

    def draw_batch(
        self, runner: Runner, outputs: Sequence[LaneDataSample], *, folder: str
    ) -> None:
        """Draw the selected images of a batch.

        Raises:
            FileNotFoundError: If an image file is missing.
        """
        if not self.draw:
            return
        out = Path(runner.log_dir) / self.test_out_dir / folder
        for sample in outputs:
            due = self.seen % self.interval == 0
            self.seen += 1
            full = (
                self.max_images is not None and self.written >= self.max_images
            )
            if due and not full:
                self.write(sample, out)

    def write(self, sample: LaneDataSample, out: Path) -> None:
        """Write the picture of one image."""
        image = cv2.imread(str(sample.img_path))
        if image is None:
            raise FileNotFoundError(
                f'{sample.img_path} cannot be read, so its lanes cannot be '
                'drawn: set draw=False of LaneVisualizationHook'
            )
        picture = draw_sample(
            image,
            sample,
            score_thr=self.score_thr,
            truth=self.truth,
            width=self.line_width,
        )
        name = PurePosixPath(str(sample.img_id)).with_suffix('.jpg')
        path = out / '_'.join(part for part in name.parts if part != '/')
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), picture)
        self.written += 1
