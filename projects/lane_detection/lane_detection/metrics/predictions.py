"""Files of predicted lanes, for comparing models with each other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ['read_predictions', 'write_predictions']

SCHEMA = 'lane_detection.predictions.v1'
# 0.001 pixels, far below the resolution of any metric
DIGITS = 3


def write_predictions(
    images: Mapping[str, Mapping[str, Any]], path: str | Path
) -> None:
    """Write the predictions of a model.

    Args:
        images: Image id -> ``lanes``, (n, 2) each in original pixels, and
            ``scores``, one for each lane.
        path: JSON file; its folder is created if necessary.
    """
    content = {
        'schema': SCHEMA,
        'images': {
            name: {
                'lanes': [rounded(lane) for lane in image['lanes']],
                'scores': [float(score) for score in image['scores']],
            }
            for name, image in images.items()
        },
    }
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, allow_nan=False), encoding='utf-8')


def rounded(lane: Any) -> list[list[float]]:
    """Return the finite points of a lane, (n, 2), as lists."""
    points = np.asarray(lane, dtype=np.float64).reshape(-1, 2)
    points = points[np.isfinite(points).all(axis=1)]
    return np.round(points, DIGITS).tolist()


def read_predictions(path: str | Path) -> dict[str, list[np.ndarray]]:
    """Read the lanes of a file written by :func:`write_predictions`.

    Returns:
        Image id -> lanes, (n, 2) float32 each in original pixels.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it holds something else.
    """
    try:
        content = json.loads(Path(path).read_text(encoding='utf-8'))
    except FileNotFoundError:
        raise FileNotFoundError(
            f'{path} is missing: write it by testing the reference model '
            "with a LaneDump among the metrics, or set reference='gt'"
        ) from None
    except ValueError as error:
        raise ValueError(f'{path} is not a JSON file: {error}') from None
    if not isinstance(content, dict) or content.get('schema') != SCHEMA:
        raise ValueError(
            f'{path} is not a file of predicted lanes ({SCHEMA}): '
            'write it with LaneDump'
        )
    return {
        name: as_lanes(image['lanes'])
        for name, image in content['images'].items()
    }


def as_lanes(lanes: Sequence[Any]) -> list[np.ndarray]:
    """Return lists of points as (n, 2) float32 arrays."""
    return [np.array(lane, dtype=np.float32).reshape(-1, 2) for lane in lanes]
