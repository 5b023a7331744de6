"""Pictures of float and quantized predictions, as shapes over one image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from taskptq.analysis.page.agreement import Agreement
from taskptq.analysis.page.photos import class_colors, overlay, photo
from taskptq.analysis.page.predictions import Box, Line, Prediction

__all__ = ['MARKS', 'choose', 'draw']

MARKS = {
    'agreed': 'both models agree',
    'lost': 'only the float model finds it',
    'new': 'only the quantized model finds it',
    'alone': 'not compared',
}
MASK_OPACITY = 0.45
CLASS_OPACITY = 0.55
CHANGED_COLOR = (255, 0, 80)
# Colors of masks, in the order of MARKS.
MASK_COLORS = ((90, 170, 255), (255, 150, 0), (255, 0, 200), (90, 170, 255))


def choose(
    scores: Sequence[float],
    *,
    busy: Sequence[bool],
    worst: int,
    typical: int,
) -> list[tuple[int, str]]:
    """Choose images: those that differ most, then those about the median.

    Args:
        scores: Disagreement of each image, see ``Agreement.score``.
        busy: Whether anything was found in it; empty images are not typical
            unless there are too few others.
        worst: Images that differ most; none where all agree.
        typical: Images about the median of the others.

    Returns:
        (index, 'worst' or 'typical') of each.

    >>> choose([0.1, 0.9, 0.2, 0.0], busy=[True] * 4, worst=1, typical=1)
    [(1, 'worst'), (0, 'typical')]
    """
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    first = [i for i in order[:worst] if scores[i] > 0]
    others = [i for i in order[len(first) :] if busy[i]]
    if len(others) < typical:
        others += [i for i in order[len(first) :] if not busy[i]]
    start = max(0, (len(others) - typical) // 2)
    middle = others[start : start + typical]
    return [(i, 'worst') for i in first] + [(i, 'typical') for i in middle]


def draw(
    image: NDArray[np.uint8] | None,
    clean: Prediction | None,
    noisy: Mapping[str, Prediction],
    agreements: Mapping[str, Agreement],
    *,
    classes: Sequence[str],
    score: float,
    size: tuple[int, int],
) -> dict[str, Any]:
    """Return a picture: an image, and a column of shapes for each model.

    Args:
        image: RGB, (H, W, 3); None leaves the ground empty.
        clean: Of the float model; None without.
        noisy: Title -> prediction of each quantized model.
        agreements: Title -> how it agrees with ``clean``.
        classes: Names of the labels.
        score: Least confidence of what is drawn.
        size: Height and width that coordinates refer to.
    """
    columns = []
    first = next(iter(agreements.values()), None)
    if clean is not None:
        marks = _marks(first, side=0) if len(noisy) == 1 else {}
        columns.append(
            _column('float', clean, marks, classes=classes, score=score)
        )
    for title, found in noisy.items():
        agreement = agreements.get(title)
        column = _column(
            title,
            found,
            _marks(agreement, side=1),
            classes=classes,
            score=score,
        )
        if agreement is not None:
            column['sentence'] = agreement.sentence()
            column['disagreement'] = agreement.score
            if clean is not None and len(noisy) > 1:
                column['shapes'] += _lost(
                    clean, agreement, classes=classes, score=score
                )
        columns.append(column)
        if agreement is not None and agreement.changed is not None:
            columns.append(_changed(title, agreement.changed))
    return {
        'photo': None if image is None else photo(image),
        'height': size[0],
        'width': size[1],
        'columns': columns,
        'legend': _legend([clean, *noisy.values()], classes=classes),
    }


def _legend(
    found: Sequence[Prediction | None], *, classes: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the name and color of each class in maps of classes."""
    maps = [one.classes for one in found if one and one.classes is not None]
    present = sorted({int(label) for one in maps for label in np.unique(one)})
    colors = _map_colors(maps, count=len(classes))
    return [
        {
            'name': _class_name(label, classes),
            'color': '#{:02x}{:02x}{:02x}'.format(*colors[label]),
        }
        for label in present
        if 0 <= label < len(colors)
    ]


def _map_colors(
    maps: Sequence[NDArray[np.int64]], *, count: int
) -> list[tuple[int, int, int]]:
    most = max((int(one.max(initial=0)) + 1 for one in maps), default=0)
    return class_colors(min(255, max(count, most)))


def _class_name(label: int, classes: Sequence[str]) -> str:
    known = 0 <= label < len(classes)
    return classes[label] if known else f'class {label}'


def _marks(agreement: Agreement | None, *, side: int) -> dict[Any, str]:
    """Return ('box' or 'line', index) -> mark, for one of the two models."""
    if agreement is None:
        return {}
    marks: dict[Any, str] = {}
    lonely = ('lost', 'new')[side]
    for kind in ('box', 'line'):
        many = f'{kind}es' if kind == 'box' else f'{kind}s'
        for pair in getattr(agreement, f'matched_{many}'):
            marks[kind, pair[side]] = 'agreed'
        for index in getattr(agreement, f'{lonely}_{many}'):
            marks[kind, index] = lonely
    return marks


def _column(
    title: str,
    found: Prediction,
    marks: Mapping[Any, str],
    *,
    classes: Sequence[str],
    score: float,
) -> dict[str, Any]:
    shapes = [
        _rectangle(box, marks.get(('box', i), 'alone'), classes=classes)
        for i, box in enumerate(found.boxes)
        if _is_drawn(box, marks.get(('box', i)), score=score)
    ]
    shapes += [
        _polyline(line, marks.get(('line', i), 'alone'))
        for i, line in enumerate(found.lines)
        if _is_drawn(line, marks.get(('line', i)), score=score)
    ]
    return {
        'title': title,
        'shapes': shapes,
        'overlay': _layer(found, marks, count=len(classes), score=score),
        'sentence': '',
    }


def _is_drawn(found: Box | Line, mark: str | None, *, score: float) -> bool:
    """Whether an object is confident enough, or the counterpart of one."""
    return found.score >= score or mark == 'agreed'


def _rectangle(
    box: Box, mark: str, *, classes: Sequence[str]
) -> dict[str, Any]:
    x1, y1, x2, y2 = box.corners
    return {
        'kind': 'box',
        'x': x1,
        'y': y1,
        'width': max(0.0, x2 - x1),
        'height': max(0.0, y2 - y1),
        'mark': mark,
        'label': _class_name(box.label, classes),
        'score': box.score,
    }


def _polyline(line: Line, mark: str) -> dict[str, Any]:
    points = ' '.join(f'{x:.1f},{y:.1f}' for x, y in line.points)
    return {
        'kind': 'line',
        'points': points,
        'mark': mark,
        'label': 'line',
        'score': line.score,
    }


def _lost(
    clean: Prediction,
    agreement: Agreement,
    *,
    classes: Sequence[str],
    score: float,
) -> list[dict[str, Any]]:
    """Return what a model misses, to draw in its own column."""
    shapes = [
        _rectangle(clean.boxes[i], 'lost', classes=classes)
        for i in agreement.lost_boxes
        if clean.boxes[i].score >= score
    ]
    return shapes + [
        _polyline(clean.lines[i], 'lost') for i in agreement.lost_lines
    ]


def _layer(
    found: Prediction, marks: Mapping[Any, str], *, count: int, score: float
) -> str | None:
    """Return masks or a map of classes as one picture to lay over."""
    if found.classes is not None:
        colors = _map_colors([found.classes], count=count)
        return overlay(found.classes, colors=colors, opacity=CLASS_OPACITY)
    shown = [
        (i, box.mask)
        for i, box in enumerate(found.boxes)
        if box.mask is not None
        and _is_drawn(box, marks.get(('box', i)), score=score)
    ]
    if not shown:
        return None
    layer = np.full(shown[0][1].shape, -1, dtype=np.int64)
    for i, mask in reversed(shown):
        mark = marks.get(('box', i), 'alone')
        if mask.shape == layer.shape:
            layer[mask] = list(MARKS).index(mark)
    return overlay(layer, colors=MASK_COLORS, opacity=MASK_OPACITY)


def _changed(title: str, changed: NDArray[np.bool_]) -> dict[str, Any]:
    layer = np.where(changed, 0, -1)
    return {
        'title': f'{title}: other class than float',
        'shapes': [],
        'overlay': overlay(layer, colors=[CHANGED_COLOR], opacity=0.9),
        'sentence': '',
    }
