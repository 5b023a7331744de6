import doctest
from itertools import pairwise

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import CubicSpline
from scipy.optimize import linear_sum_assignment

from lane_detection.metrics import culane_f1
from lane_detection.metrics.benchmark import random_samples
from lane_detection.metrics.culane_f1 import (
    CULANE_CANVAS,
    count_hits,
    lane_iou,
    lane_scores,
)
from lane_detection.metrics.curves import FAR, distinct_points, lane_curves
from lane_detection.metrics.strokes import (
    REACH,
    STEPS,
    LaneDrawing,
    draw_strokes,
)

SMALL = LaneDrawing((120, 160), 30)


def vertical(x, *, low=590.0, high=290.0, slope=0.0):
    y = np.arange(low, high - 1, -10.0)
    return np.stack([x + slope * (low - y), y], axis=1)


def scipy_curve(points, subdivisions):
    """Natural cubic spline by an independent implementation."""
    points = np.asarray(points, np.float32).astype(float)
    if len(points) == 2:
        return points.astype(np.float32)
    chords = np.hypot(*np.diff(points, axis=0).T)
    knots = np.concatenate([[0], np.cumsum(chords)])
    at = np.concatenate(
        [
            *(
                knots[i] + chords[i] / subdivisions * np.arange(subdivisions)
                for i in range(len(chords))
            ),
            knots[-1:],
        ]
    )
    spline = CubicSpline(knots, points, bc_type='natural')
    return spline(at).astype(np.float32)


def full_canvas(curve, drawing):
    """Draw every segment on a whole canvas, as the official tool does."""
    canvas = np.zeros(drawing.canvas, np.uint8)
    pixels = np.rint(curve).astype(int).tolist()
    for start, end in pairwise(pixels):
        cv2.line(canvas, start, end, 1, drawing.width)
    return canvas


def literal_iou(lanes, others, drawing):
    images = [
        [
            full_canvas(scipy_curve(lane, drawing.subdivisions), drawing)
            if len(lane) > 1
            else None
            for lane in part
        ]
        for part in (lanes, others)
    ]
    iou = np.zeros((len(lanes), len(others)))
    for i, first in enumerate(images[0]):
        for j, second in enumerate(images[1]):
            if first is not None and second is not None:
                union = (first | second).sum()
                iou[i, j] = (first & second).sum() / union if union else 0
    return iou


def literal_counts(predicted, truth, threshold, drawing):
    iou = literal_iou(truth, predicted, drawing)
    hits = sum(
        iou[i, j] > threshold
        for i, j in zip(*linear_sum_assignment(1 - iou), strict=True)
    )
    return [hits, len(predicted) - hits, len(truth) - hits]


def as_mask(stroke, drawing):
    mask = np.zeros(drawing.canvas, bool)
    if stroke is None:
        return mask
    rows = slice(stroke.top, stroke.top + len(stroke.left))
    x = np.arange(drawing.canvas[1])
    mask[rows] = (
        stroke.mask
        if stroke.mask is not None
        else (x >= stroke.left[:, None]) & (x < stroke.right[:, None])
    )
    return mask


def test_spline_is_scipys_natural_spline():
    generator = np.random.default_rng(0)
    lanes = [generator.uniform(0, 500, (n, 2)) for n in (3, 2, 9, 4, 30)]
    curves = lane_curves(lanes, subdivisions=7)
    for lane, curve in zip(lanes, curves, strict=True):
        assert curve.dtype == np.float32
        np.testing.assert_allclose(curve, scipy_curve(lane, 7), atol=1e-3)
    # 50 points for each of the 8 segments, and the last point
    assert len(lane_curves(lanes)[2]) == 8 * 50 + 1


def test_spline_by_step():
    lane = np.array([[0, 0], [0, 10.5], [3, 14.5]], float)  # 10.5, 5 long
    (curve,) = lane_curves([lane], step=1.0)
    assert len(curve) == 11 + 5 + 1
    knots = np.array([0, 10.5, 15.5])
    spline = CubicSpline(knots, lane, bc_type='natural')
    at = np.concatenate([np.arange(11), 10.5 + np.arange(5), [15.5]])
    np.testing.assert_allclose(curve, spline(at), atol=1e-4)


def test_points_that_no_spline_goes_through():
    lane = [[5, 9], [5, 9], [np.nan, 8], [7, 6], [7, 6], [5, 9]]
    assert distinct_points(lane).tolist() == [[5, 9], [7, 6], [5, 9]]
    assert distinct_points([[1e9, -1e9]]).tolist() == [[FAR, -FAR]]
    short = lane_curves([[[1, 2]], [], [[3, 3], [3, 3]], [[0, 0], [9, 9]]])
    assert [len(curve) for curve in short] == [0, 0, 0, 2]
    assert lane_curves([]) == []


@pytest.mark.parametrize('width', [2, 5, 12, 30])
def test_steps_cover_one_span_in_a_row(width):
    # What the table of steps relies on.
    size = 2 * width + 2 * REACH + 8
    for number in range(STEPS**2):
        dy, dx = np.subtract(divmod(number, STEPS), REACH).tolist()
        image = np.zeros((size, size), np.uint8)
        cv2.line(
            image,
            (size // 2, size // 2),
            (size // 2 + dx, size // 2 + dy),
            1,
            width,
        )
        for row in image[image.any(axis=1)]:
            places = np.flatnonzero(row)
            assert len(places) == places[-1] - places[0] + 1


@pytest.mark.parametrize('seed', range(40))
def test_strokes_are_what_opencv_draws(seed):
    generator = np.random.default_rng(seed)
    drawing = LaneDrawing((120, 160), int(generator.choice([5, 12, 30])))
    curves = []
    for kind in range(3):
        count = int(generator.integers(2, 7))
        y = generator.uniform(-40, 160, count)
        if kind:
            y = np.sort(y)[::-1]
        curves += lane_curves(
            [np.stack([generator.uniform(-50, 210, count), y], axis=1)],
            subdivisions=1 if kind == 2 else 50,
        )
    for curve, stroke in zip(
        curves, draw_strokes(curves, drawing), strict=True
    ):
        found = as_mask(stroke, drawing)
        different = found != full_canvas(curve, drawing).astype(bool)
        # OpenCV rounds lines that the canvas cuts in another way.
        margin = drawing.margin
        assert not different[margin:-margin, margin:-margin].any()
        assert different.sum() <= 2
        assert (0 if stroke is None else stroke.area) == found.sum()


def test_a_point_is_a_disc_and_far_curves_are_nothing():
    dot = np.float32([[50, 50], [50.2, 50.1]])
    away = np.float32([[-90, 10], [-80, 20]])
    below = np.float32([[50, 700], [50, 701], [50, 702]])
    strokes = draw_strokes([dot, away, below, dot[:1]], SMALL)
    assert np.array_equal(
        as_mask(strokes[0], SMALL), full_canvas(dot, SMALL).astype(bool)
    )
    assert strokes[1:] == [None, None, None]


def test_both_kinds_of_rows_compare():
    # A curve that turns back has rows in two pieces.
    t = np.linspace(0, np.pi, 60)
    arch = np.stack([80 - 50 * np.cos(t), 110 - 80 * np.sin(t)], axis=1)
    arch = arch.astype(np.float32)
    lane = np.float32([[32, 115], [60, 10]])
    strokes = draw_strokes([arch, lane, arch + np.float32([4, 2])], SMALL)
    assert strokes[0].mask is not None
    assert strokes[1].mask is None
    masks = [as_mask(stroke, SMALL) for stroke in strokes]
    found = lane_iou(
        [arch, lane],
        [arch + np.float32([4, 2]), lane, arch],
        drawing=LaneDrawing((120, 160), 30, subdivisions=1),
    )
    assert found[0, 0] == pytest.approx(
        (masks[0] & masks[2]).sum() / (masks[0] | masks[2]).sum()
    )
    assert found[0, 1] == pytest.approx(
        (masks[0] & masks[1]).sum() / (masks[0] | masks[1]).sum()
    )
    assert found[1, 0] == pytest.approx(
        (masks[1] & masks[2]).sum() / (masks[1] | masks[2]).sum()
    )
    assert found[1, 1] == found[0, 2] == 1


@pytest.mark.parametrize('seed', range(12))
def test_equals_the_literal_algorithm(seed):
    generator = np.random.default_rng(seed)
    drawing = LaneDrawing((148, 410), 8)

    def lanes():
        found = []
        for _ in range(generator.integers(0, 5)):
            count = int(generator.integers(1, 9))
            y = np.sort(generator.uniform(20, 148, count))[::-1]
            x = (
                generator.uniform(0, 410)
                + generator.normal(0, 1) * (148 - y)
                + generator.normal(0, 2, count)
            )
            found.append(np.stack([x, y], axis=1).astype(np.float32))
        return found

    truth = lanes()
    predicted = [lane + generator.normal(0, 1.2, 2) for lane in truth[1:]]
    predicted = [lane.astype(np.float32) for lane in predicted] + lanes()
    expected = literal_iou(truth, predicted, drawing)
    # A single pixel at the edge of this small canvas is 0.0005.
    np.testing.assert_allclose(
        lane_iou(truth, predicted, drawing=drawing), expected, atol=1e-3
    )
    found = count_hits(
        predicted, truth, thresholds=(0.3, 0.5, 0.75), drawing=drawing
    )
    assert found.tolist() == [
        literal_counts(predicted, truth, threshold, drawing)
        for threshold in (0.3, 0.5, 0.75)
    ]


def test_equals_the_literal_algorithm_on_culanes_canvas():
    (sample,) = random_samples(1, seed=3)
    predicted, truth = (
        sample[key]['points'] for key in ('pred_lanes', 'gt_lanes')
    )
    np.testing.assert_allclose(
        lane_iou(truth, predicted[:2]),
        literal_iou(truth, predicted[:2], LaneDrawing()),
        atol=1e-4,
    )


def test_default_is_culanes_way():
    assert CULANE_CANVAS == (590, 1640)
    assert LaneDrawing() == LaneDrawing((590, 1640), 30, 50, None)


@pytest.mark.parametrize('shift', [0, 2, 5, 8, 9, 10, 11, 15, 29, 60])
def test_shift_of_a_vertical_lane(shift):
    iou = lane_iou([vertical(800)], [vertical(800 + shift)])[0, 0]
    # OpenCV draws a line of thickness 30 from -15 to +15: 31 pixels.
    expected = max(31 - shift, 0) / (31 + min(shift, 31))
    assert iou == pytest.approx(expected, abs=0.01)
    ideal = max(30 - shift, 0) / (30 + min(shift, 30))
    assert iou == pytest.approx(ideal, abs=0.025)
    hits = count_hits([vertical(800 + shift)], [vertical(800)])[0, 0]
    if shift != 10:  # 0.500 ideally, on the threshold; 0.51 as drawn
        assert hits == (shift < 10)


@pytest.mark.parametrize(('slope', 'tolerance'), [(1, 14), (2, 21), (3, 30)])
def test_tolerance_grows_with_the_slope(slope, tolerance):
    lane = vertical(100, slope=slope)
    assert count_hits([lane + np.array([tolerance - 2, 0])], [lane])[0, 0] == 1
    assert count_hits([lane + np.array([tolerance + 5, 0])], [lane])[0, 0] == 0


@pytest.mark.parametrize(
    ('rows', 'iou'), [(40, 0.87), (80, 0.75), (120, 0.62), (160, 0.50)]
)
def test_lane_that_ends_early(rows, iou):
    whole = vertical(800, low=580, high=260)
    short = vertical(800, low=580, high=260 + rows)
    found = lane_iou([whole], [short])[0, 0]
    assert found == pytest.approx(iou, abs=0.05)
    # The disc above adds 15 rows, the canvas cuts the one below to 10.
    assert found == pytest.approx((345 - rows) / 345, abs=0.01)


def test_hit_is_strictly_greater():
    drawing = LaneDrawing((100, 100), 10)
    first = np.array([[50.0, -40.0], [50.0, 140.0]])
    second = np.array([[50.0, -40.0], [50.0, 49.0]])
    iou = lane_iou([first], [second], drawing=drawing)[0, 0]
    assert count_hits(
        [first], [second], thresholds=(iou, iou - 1e-9), drawing=drawing
    ).tolist() == [[0, 1, 1], [1, 0, 0]]
    one = count_hits(
        [first], [first], thresholds=(0.999, 1.0), drawing=drawing
    )
    assert one.tolist() == [[1, 0, 0], [0, 1, 1]]


def test_iou_of_exactly_one_half_is_no_hit():
    # A line of thickness 10 is 11 pixels wide. Cut by the canvas, the first
    # covers columns 0 to 6; the second 1 to 11: they share 6 of 12.
    drawing = LaneDrawing((40, 40), 10)
    first = np.array([[1.0, -60.0], [1.0, 100.0]])
    second = np.array([[6.0, -60.0], [6.0, 100.0]])
    assert lane_iou([first], [second], drawing=drawing)[0, 0] == 0.5
    assert count_hits(
        [first], [second], thresholds=(0.49, 0.5), drawing=drawing
    ).tolist() == [[1, 0, 0], [0, 1, 1]]


def test_short_lanes_count():
    lane, point = vertical(800), np.array([[100.0, 400.0]])
    repeated = np.array([[100.0, 400.0]] * 3)
    assert count_hits([lane, point], [lane]).tolist() == [[1, 1, 0]]
    assert count_hits([lane], [lane, point]).tolist() == [[1, 0, 1]]
    assert count_hits([point], [point]).tolist() == [[0, 1, 1]]
    assert count_hits([repeated], [point, lane]).tolist() == [[0, 1, 2]]
    assert count_hits([np.zeros((0, 2))], []).tolist() == [[0, 1, 0]]
    assert count_hits([], [lane] * 3).tolist() == [[0, 0, 3]]
    assert count_hits([lane] * 3, []).tolist() == [[0, 3, 0]]
    assert count_hits([], []).tolist() == [[0, 0, 0]]


def test_lanes_off_the_canvas_count():
    lane, away = vertical(800), vertical(-500)
    assert lane_iou([away], [away])[0, 0] == 0
    assert count_hits([away], [away, lane]).tolist() == [[0, 1, 2]]


def test_each_lane_matches_once():
    lane = vertical(800)
    near = lane + np.array([1, 0])
    assert count_hits([lane, near], [lane]).tolist() == [[1, 1, 0]]
    assert count_hits([lane], [lane, lane]).tolist() == [[1, 0, 1]]


def test_matching_has_the_greatest_sum():
    # 803 is nearest to 800, but the other way round both have a partner.
    truth = [vertical(800), vertical(809)]
    predicted = [vertical(803), vertical(795)]
    assert count_hits(predicted, truth).tolist() == [[2, 0, 0]]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 4))
def test_identical_sets_are_all_hits(seed, count):
    generator = np.random.default_rng(seed)
    lanes = [
        np.stack(
            [
                generator.uniform(0, 159, 5),
                np.sort(generator.uniform(0, 119, 5))[::-1],
            ],
            axis=1,
        )
        for _ in range(count)
    ]
    order = generator.permutation(count)
    found = count_hits(
        [lanes[i] for i in order], lanes, thresholds=(0.5, 0.99), drawing=SMALL
    )
    assert found.tolist() == [[count, 0, 0]] * 2
    iou = lane_iou(lanes, lanes, drawing=SMALL)
    np.testing.assert_array_equal(iou, iou.T)
    np.testing.assert_array_equal(np.diag(iou), 1)
    assert (iou >= 0).all()
    assert (iou <= 1).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_order_of_lanes_and_points_is_irrelevant(seed):
    generator = np.random.default_rng(seed)
    lanes = [generator.uniform(0, 119, (4, 2)) for _ in range(5)]
    predicted, truth = lanes[:3], lanes[2:]
    iou = lane_iou(predicted, truth, drawing=SMALL)
    order = generator.permutation(3)
    shuffled = lane_iou(
        [predicted[i] for i in order],
        [lane[::-1] for lane in truth],
        drawing=SMALL,
    )
    # Reversed, a curve is rounded at other places along the same way.
    np.testing.assert_allclose(shuffled, iou[order], atol=0.03)
    found = count_hits([predicted[i] for i in order], truth, drawing=SMALL)
    assert (
        found.tolist() == count_hits(predicted, truth, drawing=SMALL).tolist()
    )


def test_scores():
    assert lane_scores(3, 1, 2) == pytest.approx(
        {'F1': 6 / 9, 'precision': 3 / 4, 'recall': 3 / 5}
    )
    assert lane_scores(0, 0, 5) == {'F1': 0, 'precision': 0, 'recall': 0}
    assert lane_scores(0, 0, 0) == {'F1': 0, 'precision': 0, 'recall': 0}
    assert doctest.testmod(culane_f1).failed == 0


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(canvas=(0, 10)), r'canvas=\(0, 10\)'),
        (dict(width=1), 'width=1'),
    ],
)
def test_refuses_bad_drawings(kwargs, message):
    with pytest.raises(ValueError, match=message):
        LaneDrawing(**kwargs)


def test_refuses_bad_spacing():
    with pytest.raises(ValueError, match='subdivisions=0'):
        lane_curves([vertical(5)], subdivisions=0)
    with pytest.raises(ValueError, match=r'step=0\.0'):
        lane_curves([vertical(5)], step=0.0)
