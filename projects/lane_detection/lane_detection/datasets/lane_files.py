"""Readers and writers of the lane files of CULane, TuSimple, CurveLanes.

All readers return polylines, (n, 2) float32, from the bottom upwards. Lanes
of a single point are kept: the official CULane metric counts them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..geometry import bottom_up

__all__ = [
    'format_culane',
    'lanes_to_rows',
    'parse_culane',
    'read_culane',
    'read_curvelanes',
    'read_lines',
    'read_text',
    'rows_to_lanes',
    'write_culane',
]

# TuSimple's value for rows without a point of the lane.
ABSENT = -2


def read_text(path: str | Path, *, what: str) -> str:
    """Read a text file.

    Args:
        path: The file.
        what: Description and origin of the file, for the message.

    Raises:
        FileNotFoundError: If the file does not exist.
    """
    try:
        return Path(path).read_text(encoding='utf-8')
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f'{path} is missing: {what}') from None


def read_lines(path: str | Path, *, what: str) -> list[str]:
    """Read the lines of a list file, stripped, without empty ones."""
    lines = (line.strip() for line in read_text(path, what=what).splitlines())
    return [line for line in lines if line]


def parse_culane(text: str, *, path: str | Path) -> list[np.ndarray]:
    """Parse a ``.lines.txt``: a lane per line, x and y alternating.

    Args:
        text: Contents of the file; empty without lanes.
        path: Path of the file, for messages.

    Raises:
        ValueError: If a line isn't an even number of finite numbers.
    """
    lanes = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        try:
            values = np.array([float(word) for word in words])
        except ValueError:
            raise ValueError(
                f'{path}:{number} holds something that is not a number: it '
                'must be "x y x y ..." of one lane'
            ) from None
        if len(values) % 2 or not np.isfinite(values).all():
            raise ValueError(
                f'{path}:{number} has {len(values)} values: it must be "x y '
                'x y ..." of one lane, finite and even in number'
            )
        lanes.append(bottom_up(values.reshape(-1, 2)))
    return lanes


def read_culane(path: str | Path) -> list[np.ndarray]:
    """Read a ``.lines.txt``.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If it is malformed.
    """
    text = read_text(
        path,
        what='CULane keeps the lanes of an image in a .lines.txt '
        'next to it (annotations_new.tar.gz, and the archives of the test '
        'drivers); unpack them over the images',
    )
    return parse_culane(text, path=path)


def format_culane(lanes: Sequence[np.ndarray]) -> str:
    """Return the text of a ``.lines.txt``, with three decimals."""
    return ''.join(
        ' '.join(f'{x:.3f} {y:.3f}' for x, y in lane) + '\n' for lane in lanes
    )


def write_culane(lanes: Sequence[np.ndarray], path: str | Path) -> None:
    """Write a ``.lines.txt``, creating its folder if necessary."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(format_culane(lanes), encoding='utf-8')


def read_curvelanes(path: str | Path) -> list[np.ndarray]:
    """Read a ``.lines.json``: ``{"Lines": [[{"x": "1", "y": "2"}, ...]]}``.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If it is malformed.
    """
    text = read_text(
        path,
        what='CurveLanes keeps the lanes of images/NAME.jpg in '
        'labels/NAME.lines.json; its test split has none',
    )
    try:
        lines = json.loads(text)['Lines']
        lanes = [
            [(float(p['x']), float(p['y'])) for p in line] for line in lines
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f'{path} is not of the form {{"Lines": [[{{"x": "1", "y": "2"}}, '
            f'...], ...]}}: {error!r}'
        ) from None
    return [bottom_up(np.array(lane)) for lane in lanes if lane]


def rows_to_lanes(
    rows: Sequence[Sequence[float]], h_samples: Sequence[float]
) -> list[np.ndarray]:
    """Convert TuSimple's x per row to polylines.

    Args:
        rows: x of each lane in each row of ``h_samples``; negative for no
            point.
        h_samples: (R,) y in pixels.

    Returns:
        Polylines; lanes without points are omitted.
    """
    y = np.asarray(h_samples, dtype=np.float32)
    lanes = []
    for xs in rows:
        x = np.asarray(xs, dtype=np.float32)
        if len(x) != len(y):
            raise ValueError(
                f'a lane has {len(x)} values, but h_samples has {len(y)} '
                'rows: give one value per row'
            )
        there = x >= 0
        if there.any():
            lanes.append(bottom_up(np.stack([x[there], y[there]], axis=1)))
    return lanes


def lanes_to_rows(
    lanes: Sequence[np.ndarray],
    h_samples: Sequence[float],
    *,
    width: float,
    absent: float = ABSENT,
) -> list[list[float]]:
    """Sample polylines at TuSimple's rows.

    Args:
        lanes: (n, 2) arrays, y decreasing.
        h_samples: (R,) y in pixels.
        width: Width of the image in pixels; points outside are absent.
        absent: Value for rows without a point.

    Returns:
        x in each row, for each lane with at least one point.
    """
    y = np.asarray(h_samples, dtype=np.float64)
    rows: list[list[Any]] = []
    for lane in lanes:
        if len(lane) == 0:
            continue
        x = np.interp(y, lane[::-1, 1], lane[::-1, 0])
        there = (y >= lane[:, 1].min()) & (y <= lane[:, 1].max())
        there &= (x >= 0) & (x < width)
        if there.any():
            rows.append(np.where(there, np.round(x, 3), absent).tolist())
    return rows
