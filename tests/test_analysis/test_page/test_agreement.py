"""Where two models disagree."""

import numpy as np
import pytest

from taskptq.analysis.page.agreement import compare, line_distance
from taskptq.analysis.page.predictions import Box, Line, Prediction

SIZE = (100, 100)


def box(x, *, label=0, score=0.9):
    return Box(corners=(x, 0, x + 10, 10), label=label, score=score)


def line(x, *, score=0.9):
    y = np.linspace(0, 100, 11)
    points = np.stack([np.full_like(y, x), y], axis=1)
    return Line(points=points, score=score)


def found(clean, noisy, score=0.5):
    return compare(
        Prediction(boxes=clean),
        Prediction(boxes=noisy),
        score=score,
        size=SIZE,
    )


def test_the_same_boxes_agree():
    result = found([box(0), box(50)], [box(50), box(1)])
    assert [(i, j) for i, j, _ in result.matched_boxes] == [(0, 1), (1, 0)]
    assert result.matched_boxes[1][2] == 1
    assert result.score == 0
    assert result.sentence() == '2 agree'


def test_lost_and_new_boxes():
    result = found([box(0), box(50)], [box(50), box(80, score=0.6)])
    assert (result.lost_boxes, result.new_boxes) == ([0], [1])
    assert result.score == pytest.approx(1.5 / 3.3)
    assert result.sentence() == '1 agrees, 1 lost, 1 new'


def test_another_class_is_another_object():
    result = found([box(0, label=1)], [box(0, label=2)])
    assert (result.lost_boxes, result.new_boxes) == ([0], [0])


def test_an_object_on_the_edge_of_the_threshold_is_not_lost():
    result = found([box(0, score=0.51)], [box(0, score=0.49)])
    assert result.score == 0
    assert len(result.matched_boxes) == 1
    # Two that are both unlikely are nobody's loss.
    result = found([box(0, score=0.3)], [box(50, score=0.3)])
    assert not result.lost_boxes
    assert not result.new_boxes


def test_each_box_has_one_counterpart():
    result = found([box(0), box(2)], [box(1)])
    assert len(result.matched_boxes) == 1
    assert len(result.lost_boxes) == 1


def test_lines_match_by_distance():
    assert line_distance(line(3), line(5)) == pytest.approx(2)
    clean = Prediction(lines=[line(10), line(50)])
    noisy = Prediction(lines=[line(51), line(30)])
    result = compare(clean, noisy, score=0.5, size=SIZE)
    assert result.matched_lines == [(1, 0, pytest.approx(1))]
    assert (result.lost_lines, result.new_lines) == ([0], [1])


def test_changed_pixels():
    clean, noisy = np.zeros((10, 10), int), np.zeros((10, 10), int)
    noisy[:2] = 1
    result = compare(
        Prediction(classes=clean),
        Prediction(classes=noisy),
        score=0.5,
        size=SIZE,
    )
    assert result.score == pytest.approx(0.2)
    assert result.sentence() == '20.0% of the pixels have another class'


def test_nothing_at_all():
    result = found([], [])
    assert result.score == 0
    assert result.sentence() == 'nothing found, by either'
