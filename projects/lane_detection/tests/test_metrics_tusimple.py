import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lane_detection.metrics.tusimple import (
    best_accuracies,
    lane_angle,
    tusimple_f1,
    tusimple_score,
)

ROWS = list(range(160, 711, 10))  # 56


def vertical(x):
    return [float(x)] * len(ROWS)


def shifted(lane, by):
    return [x + by if x >= 0 else x for x in lane]


def score(predicted, truth, **kwargs):
    return tuple(tusimple_score(predicted, truth, h_samples=ROWS, **kwargs))


def test_rows():
    assert len(ROWS) == 56


def test_threshold_of_a_vertical_lane():
    lane = vertical(600)
    assert score([shifted(lane, 19)], [lane]) == (1, 0, 0)
    assert score([shifted(lane, 20)], [lane]) == (0, 1, 1)


def test_threshold_of_a_diagonal_lane():
    lane = [float(y) for y in ROWS]
    assert lane_angle(np.array(lane), np.array(ROWS, float)) == (
        pytest.approx(np.pi / 4)
    )
    assert score([shifted(lane, 28)], [lane]) == (1, 0, 0)
    assert score([shifted(lane, 29)], [lane]) == (0, 1, 1)


def test_fifth_lane_is_forgiven():
    lanes = [vertical(200 * k) for k in range(1, 6)]
    assert score(lanes[:4], lanes) == (1, 0, 0)
    # with four lanes it isn't
    assert score(lanes[:3], lanes[:4]) == (0.75, 0, 0.25)
    assert score(lanes[:3], lanes) == (0.75, 0, 0.25)
    assert score(lanes, lanes) == (1, 0, 0)


def test_too_many_predictions():
    lane = vertical(600)
    four = [lane, vertical(100), vertical(900), vertical(1100)]
    assert score(four, [lane]) == (0, 0, 1)
    assert score(four[:3], [lane]) == pytest.approx((1, 2 / 3, 0))


def test_one_prediction_may_match_twice():
    lane = vertical(600)
    assert score([lane], [lane, lane]) == (1, -1, 0)


def test_nothing_there_and_nothing_predicted():
    assert score([], []) == (0, 0, 0)
    assert score([vertical(5)], []) == (0, 1, 0)
    assert score([], [vertical(5)]) == (0, 0, 1)


def test_rows_without_both_are_right():
    lane = [-2.0] * 40 + [600.0] * 16
    found = score([shifted(lane, 20)], [lane])
    assert found == pytest.approx((40 / 56, 1, 1))
    assert score([shifted(lane, 19)], [lane]) == (1, 0, 0)
    # any negative number means absent
    assert score([[-50.0 if x < 0 else x for x in lane]], [lane]) == (1, 0, 0)


def test_share_of_rows_is_at_least_85_percent():
    lane = vertical(600)
    nearly = [x + 100 * (number < 8) for number, x in enumerate(lane)]
    assert score([nearly], [lane]) == pytest.approx((48 / 56, 0, 0))
    nearly[8] += 100
    assert score([nearly], [lane]) == pytest.approx((47 / 56, 1, 1))


def test_slow_predictions_are_lost():
    lane = vertical(600)
    assert score([lane], [lane], run_time=200) == (1, 0, 0)
    assert score([lane], [lane], run_time=200.1) == (0, 0, 1)


def test_angle():
    rows = np.array(ROWS, float)
    assert lane_angle(np.full(56, -2.0), rows) == 0
    one = np.full(56, -2.0)
    one[3] = 100
    assert lane_angle(one, rows) == 0
    generator = np.random.default_rng(0)
    lane = 100 + 0.7 * rows + generator.normal(0, 5, 56)
    lane[:20] = -2
    slope = np.polyfit(rows[20:], lane[20:], 1)[0]
    assert lane_angle(lane, rows) == pytest.approx(np.arctan(slope))


def test_refuses_other_rows():
    with pytest.raises(ValueError, match='predicted lane 1 has 2 rows'):
        score([vertical(5), [1, 2]], [])
    with pytest.raises(ValueError, match='truth lane 0 has 1 rows'):
        score([], [[1]])


def test_f1():
    assert tusimple_f1(0.0, 0.0) == 1
    assert tusimple_f1(0.2, 0.4) == pytest.approx(2 * 0.8 * 0.6 / 1.4)
    assert tusimple_f1(1.0, 1.0) == 0


def literal(predicted, truth):
    """Follow the dossier's steps lane by lane."""
    if len(predicted) > len(truth) + 2:
        return 0.0, 0.0, 1.0
    best = []
    for lane in truth:
        points = [(y, x) for y, x in zip(ROWS, lane, strict=True) if x >= 0]
        slope = (
            np.polyfit(*zip(*points, strict=True), 1)[0]
            if (len(points) > 1)
            else 0.0
        )
        limit = 20 / np.cos(np.arctan(slope))
        best.append(
            max(
                (
                    sum(
                        abs((p if p >= 0 else -100) - (g if g >= 0 else -100))
                        < limit
                        for p, g in zip(other, lane, strict=True)
                    )
                    / len(ROWS)
                    for other in predicted
                ),
                default=0.0,
            )
        )
    matched = sum(value >= 0.85 for value in best)
    missed, total = len(truth) - matched, sum(best)
    if len(truth) > 4:
        total -= min(best)
        missed = missed - 1 if missed else 0
    count = max(min(4, len(truth)), 1)
    fp = (len(predicted) - matched) / len(predicted) if predicted else 0
    return total / count, fp, missed / count


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_equals_the_steps_lane_by_lane(seed):
    generator = np.random.default_rng(seed)
    rows = np.array(ROWS)

    def lane():
        x = generator.uniform(0, 1280) + generator.normal(0, 1) * (rows - 400)
        x[: generator.integers(0, 50)] = -2
        return np.where(x < 0, -2, x)

    truth = [lane() for _ in range(generator.integers(0, 7))]
    predicted = [
        np.where(x < 0, x, x + generator.normal(0, 12)) for x in truth[1:]
    ] + [lane() for _ in range(generator.integers(0, 3))]
    expected = literal(predicted, truth)
    assert score(predicted, truth) == pytest.approx(expected)
    order = generator.permutation(len(predicted))
    assert score([predicted[i] for i in order], truth[::-1]) == (
        pytest.approx(expected)
    )
    if truth:
        # The official script leaves out one lane of six and divides by four.
        assert score(truth, truth)[0] == (1.25 if len(truth) == 6 else 1)
        assert best_accuracies(
            np.array(truth), np.array(truth), rows
        ).tolist() == ([1] * len(truth))
