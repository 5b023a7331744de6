"""Write predicted lanes for a comparison or for the official tools."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mmdet.registry import METRICS
from mmengine.evaluator import BaseMetric
from torch import Tensor

from ..datasets.lane_files import lanes_to_rows, write_culane
from .base import predicted_lanes
from .predictions import write_predictions

__all__ = ['LaneDump']

LAYOUTS = ('json', 'culane', 'tusimple')
# Milliseconds for TuSimple's tool, which counts 200 and more as missed.
RUN_TIME = 10


@METRICS.register_module()
class LaneDump(BaseMetric):
    """Write the predicted lanes of a data set; without a score.

    Args:
        out: File to write, or folder with ``layout='culane'``.
        layout: ``'json'``, the ``reference`` of lane metrics; ``'culane'``, a
            ``.lines.txt`` for each image below the folder; ``'tusimple'``,
            JSON lines with x at the image's ``h_samples``.
        collect_device: See BaseMetric.

    Raises:
        ValueError: If the layout is unknown.
    """

    def __init__(
        self, out: str, *, layout: str = 'json', collect_device: str = 'cpu'
    ) -> None:
        super().__init__(collect_device=collect_device)
        if layout not in LAYOUTS:
            raise ValueError(
                f'layout={layout!r}: choose one of {", ".join(LAYOUTS)}'
            )
        self.out = Path(out)
        self.layout = layout

    def process(
        self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]
    ) -> None:
        """Keep the lanes of a batch.

        Raises:
            ValueError: If predictions are missing.
        """
        del data_batch
        for sample in data_samples:
            self.results.append(
                {
                    'name': str(sample['img_id']),
                    'lanes': predicted_lanes(sample),
                    'scores': predicted_scores(sample),
                    'rows': sample.get('h_samples'),
                    'width': sample['ori_shape'][1],
                }
            )

    def compute_metrics(
        self, results: list[dict[str, Any]]
    ) -> dict[str, float]:
        """Write the lanes of all images.

        Raises:
            ValueError: If two images have the same id, or the layout needs
                rows that the images don't have.
        """
        images = {result['name']: result for result in results}
        if len(images) != len(results):
            raise ValueError(
                f'{len(results)} images have only {len(images)} different '
                'ids (img_id): their lanes would overwrite each other'
            )
        if self.layout == 'json':
            write_predictions(images, self.out)
        elif self.layout == 'culane':
            for name, image in images.items():
                write_culane(
                    image['lanes'],
                    self.out / Path(name).with_suffix('.lines.txt'),
                )
        else:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            self.out.write_text(
                ''.join(tusimple_line(image) for image in results),
                encoding='utf-8',
            )
        return {}


def predicted_scores(sample: Mapping[str, Any]) -> list[float]:
    """Return the scores of the predicted lanes; 1 if they have none."""
    found = sample['pred_lanes']
    scores = found.get('scores')
    if scores is None:
        return [1.0] * len(found['points'])
    if isinstance(scores, Tensor):
        scores = scores.detach().cpu().numpy()
    return np.asarray(scores, dtype=float).tolist()


def tusimple_line(image: Mapping[str, Any]) -> str:
    """Return a line of TuSimple's file of predictions."""
    if image['rows'] is None:
        raise ValueError(
            f'image {image["name"]} has no h_samples, which '
            "layout='tusimple' needs: use layout='json'"
        )
    lanes = [
        lane[np.argsort(-lane[:, 1], kind='stable')] for lane in image['lanes']
    ]
    return (
        json.dumps(
            {
                'raw_file': image['name'],
                'lanes': lanes_to_rows(
                    lanes, image['rows'], width=image['width']
                ),
                'run_time': RUN_TIME,
            }
        )
        + '\n'
    )
