"""Measure how many images per second CULaneMetric evaluates.

Usage::

    python -m lane_detection.metrics.benchmark --images 1000 --num-workers 2
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from .culane_f1 import CULANE_CANVAS
from .culane_metric import CULaneMetric

__all__ = ['measure', 'random_lanes', 'random_samples']

BATCH_SIZE = 8


def random_lanes(
    generator: np.random.Generator, *, num_lanes: int = 4
) -> list[np.ndarray]:
    """Draw lanes as CULane annotates them: a point every 10 rows.

    They run from the bottom, or the side, of the image to a common point near
    row 260, bent to one side.

    Returns:
        (n, 2) each, float32, x and y in pixels.
    """
    height, width = CULANE_CANVAS
    top = generator.uniform(250, 290)
    goal = width / 2 + generator.normal(0, 100)
    bend = generator.normal(0, 60)
    starts = (
        goal
        + generator.normal(0, 80)
        + 700 * (np.arange(num_lanes) - (num_lanes - 1) / 2)
    )
    lanes = []
    for start in starts:
        y = np.arange(height, top + generator.uniform(0, 40), -10.0)
        along = (height - y) / (height - top)
        x = start + (goal - start) * along + bend * along**2
        lane = np.stack([x, y], axis=1).astype(np.float32)
        lane = lane[(x > -20) & (x < width + 20)]
        if len(lane) > 1:
            lanes.append(lane)
    return lanes


def random_samples(
    num_images: int, *, seed: int = 0, num_lanes: int = 4
) -> list[dict[str, Any]]:
    """Draw annotated lanes, and predictions shifted by some pixels."""
    generator = np.random.default_rng(seed)
    samples = []
    for number in range(num_images):
        truth = random_lanes(generator, num_lanes=num_lanes)
        predicted = [
            lane
            + np.stack(
                [
                    np.full(len(lane), generator.normal(0, 6)),
                    np.zeros(len(lane)),
                ],
                axis=1,
            )
            for lane in truth
        ]
        samples.append(
            {
                'img_id': str(number),
                'ori_shape': CULANE_CANVAS,
                'gt_lanes': {'points': truth},
                'pred_lanes': {'points': predicted},
            }
        )
    return samples


def measure(
    samples: Sequence[dict[str, Any]], *, num_workers: int
) -> tuple[float, dict[str, float]]:
    """Return images per second, including process start, and F1."""
    metric = CULaneMetric(num_workers=num_workers)
    start = time.perf_counter()
    for first in range(0, len(samples), BATCH_SIZE):
        metric.process({}, samples[first : first + BATCH_SIZE])
    scores = metric.evaluate(len(samples))
    return len(samples) / (time.perf_counter() - start), scores


def main(argv: Sequence[str] | None = None) -> None:
    """Write images per second, by wall clock and by processor time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--images', type=int, default=500)
    parser.add_argument(
        '--lanes', type=int, default=4, help='lanes of an image'
    )
    parser.add_argument(
        '--num-workers',
        type=int,
        default=2,
        help='worker processes; 0 uses only this process',
    )
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args(argv)
    samples = random_samples(args.images, seed=args.seed, num_lanes=args.lanes)
    start = time.process_time()
    measure(samples[: BATCH_SIZE * 10], num_workers=0)
    seconds = (time.process_time() - start) / len(samples[: BATCH_SIZE * 10])
    speed, scores = measure(samples, num_workers=args.num_workers)
    lanes = sum(len(sample['gt_lanes']['points']) for sample in samples)
    sys.stdout.write(
        f'{speed:.0f} images/s by the clock with {args.num_workers} '
        f'processes, {lanes / len(samples):.1f} lanes an image, F1_50 '
        f'{scores["F1_50"]:.3f}\n'
        f'{1 / seconds:.0f} images/s of one processor core\n'
    )


if __name__ == '__main__':
    main()
