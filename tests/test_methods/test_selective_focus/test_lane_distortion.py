import doctest
import importlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linear_sum_assignment

from taskptq.methods.selective_focus import lane_distortion_score, sample_lanes
from taskptq.methods.selective_focus.lane_distortion import (
    lane_disagreement,
    lane_distortion,
    min_cost_assignment,
)

ROWS = np.arange(300.0, 580.0, 10.0)


def straight(x, *, low=590.0, high=290.0, slope=0.0):
    y = np.arange(low, high - 1, -20.0)
    return np.stack([x + slope * (low - y), y], axis=1)


def four_lanes():
    return [straight(200.0 * k, slope=0.1 * k) for k in range(1, 5)]


# Lanes at 6 rows: any x, absent rows as NaN.
lane_sets = st.integers(0, 4).flatmap(
    lambda count: arrays(
        float,
        (count, 6),
        elements=st.one_of(st.just(np.nan), st.floats(0, 120, width=16)),
    )
)


def score(a, b, **kwargs):
    return lane_distortion_score(a, b, **kwargs)


def test_same_lanes_have_no_distortion():
    lanes = four_lanes()
    assert score(lanes, lanes, rows=ROWS) == 0
    assert score(lanes, lanes[::-1], rows=ROWS) == 0
    assert score([], [], rows=ROWS) == 0


def test_losing_one_of_four_equal_lanes_is_a_quarter_of_gamma():
    lanes = four_lanes()
    assert score(lanes, lanes[:3], rows=ROWS) == pytest.approx(30 / 4)
    assert score(lanes, lanes[1:], rows=ROWS, gamma=20) == pytest.approx(5)
    assert score(lanes[1:], lanes, rows=ROWS) == pytest.approx(30 / 4)


def test_shift_is_the_score():
    lanes = four_lanes()
    moved = [lane + np.array([5, 0]) for lane in lanes]
    assert score(lanes, moved, rows=ROWS) == pytest.approx(5)
    found = lane_distortion(lanes, moved, rows=ROWS)
    assert found.pairs == ((0, 0), (1, 1), (2, 2), (3, 3))
    assert found.distance == pytest.approx(5 * 4 * len(ROWS))
    assert found.common_rows == found.rows == 4 * len(ROWS)
    assert found.num_lanes == (4, 4)


def test_all_lost_is_gamma():
    lanes = four_lanes()
    assert score(lanes, [], rows=ROWS) == 30
    assert score([], lanes, rows=ROWS, gamma=12.5) == 12.5
    # 30 pixels away isn't the same lane any more; 29.9 is.
    far = [straight(230.0)]
    assert score([straight(200.0)], far, rows=ROWS) == 30
    assert not lane_distortion([straight(200.0)], far, rows=ROWS).pairs
    assert lane_distortion([straight(200.1)], far, rows=ROWS).pairs == (
        (0, 0),
    )


def test_rows_of_one_lane_only_cost_gamma():
    # 28 rows; the second lane has the 14 below 435, 4 pixels away.
    whole, half = straight(400.0), straight(404.0, high=430.0)
    there = np.isfinite(sample_lanes([half], ROWS)).sum()
    assert 0 < there < len(ROWS)
    expected = (4 * there + 30 * (len(ROWS) - there)) / len(ROWS)
    assert score([whole], [half], rows=ROWS) == pytest.approx(expected)


def test_far_rows_of_a_pair_are_capped():
    first = np.zeros((1, 10))
    second = np.zeros((1, 10))
    second[0, 0] = 200.0
    # mean 20 < tau, so it is a pair; 30 of 200 count
    assert score(first, second) == pytest.approx(3.0)
    assert score(first, second, gamma=10) == pytest.approx(1.0)
    assert score(first, second, tau=20) == 30


def test_assignment_is_by_total_cost_not_greedy():
    first = np.array([[10.0] * 4, [20.0] * 4])
    second = np.array([[19.0] * 4, [35.0] * 4])
    # Greedy would pair 20 with 19 and leave 10 with 35, 25 away.
    assert lane_distortion(first, second).pairs == ((0, 0), (1, 1))
    assert score(first, second) == pytest.approx((9 + 15) / 2)


def test_lanes_without_common_rows_do_not_pair():
    upper = np.array([[5.0, 5.0, np.nan, np.nan]])
    lower = np.array([[np.nan, np.nan, 5.0, 5.0]])
    assert lane_distortion(upper, lower).pairs == ()
    assert score(upper, lower) == 30


@settings(max_examples=60, deadline=None)
@given(lane_sets, lane_sets)
def test_properties(a, b):
    value = score(a, b)
    assert 0 <= value <= 30
    assert score(a, a) == 0
    assert value == pytest.approx(score(b, a))
    order = np.random.default_rng(0).permutation(len(b))
    assert value == pytest.approx(score(a, b[order]))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 5), st.integers(0, 5), st.integers(0, 1000))
def test_assignment_is_scipys(rows, columns, seed):
    generator = np.random.default_rng(seed)
    cost = generator.normal(size=(rows, columns))
    if seed % 2:
        cost = np.round(cost)
    found = min_cost_assignment(cost)
    expected = linear_sum_assignment(cost)
    # Of assignments of equal cost, either may leave out another row.
    assert list(found[0]) == sorted(set(found[0]))
    assert len(found[0]) == len(set(found[1])) == min(rows, columns)
    assert cost[found].sum() == pytest.approx(cost[expected].sum())


def literal_score(a, b, gamma, tau):
    """Follow the definition, row by row."""
    a = [lane for lane in a if np.isfinite(lane).any()]
    b = [lane for lane in b if np.isfinite(lane).any()]
    cost = np.full((len(a), len(b)), 1e6)
    for i, first in enumerate(a):
        for j, second in enumerate(b):
            gaps = [
                abs(p - q)
                for p, q in zip(first, second, strict=True)
                if np.isfinite(p) and np.isfinite(q)
            ]
            if gaps:
                cost[i, j] = sum(gaps) / len(gaps)
    total, rows = 0.0, 0
    free_a, free_b = set(range(len(a))), set(range(len(b)))
    for i, j in zip(*linear_sum_assignment(cost), strict=True):
        if cost[i, j] >= tau:
            continue
        free_a.remove(i)
        free_b.remove(j)
        for p, q in zip(a[i], b[j], strict=True):
            if np.isfinite(p) and np.isfinite(q):
                total += min(abs(p - q), gamma)
            elif np.isfinite(p) or np.isfinite(q):
                total += gamma
            rows += bool(np.isfinite(p) or np.isfinite(q))
    for lane in [a[i] for i in free_a] + [b[j] for j in free_b]:
        total += gamma * np.isfinite(lane).sum()
        rows += int(np.isfinite(lane).sum())
    return total / max(1, rows)


@pytest.mark.parametrize('seed', range(20))
def test_equals_the_definition(seed):
    generator = np.random.default_rng(seed)
    sets = []
    for count in generator.integers(0, 6, size=2):
        lanes = np.cumsum(generator.normal(0, 15, (count, 12)), axis=1)
        lanes += generator.uniform(0, 80, (count, 1))
        lanes[generator.random(lanes.shape) < 0.4] = np.nan
        sets.append(lanes)
    found = score(*sets, gamma=25.0, tau=35.0)
    assert found == pytest.approx(literal_score(*sets, 25.0, 35.0))


def test_tensors_and_arrays_and_polylines_agree():
    lanes = four_lanes()
    other = [lane + np.array([3, 0]) for lane in lanes[:2]]
    expected = score(lanes, other, rows=ROWS)
    tensors = [torch.from_numpy(lane).requires_grad_() for lane in lanes]
    assert score(tensors, other, rows=torch.from_numpy(ROWS)) == expected
    sampled = sample_lanes(lanes, ROWS), sample_lanes(other, ROWS)
    assert score(*sampled) == expected
    assert score(*map(torch.from_numpy, sampled), rows=ROWS) == expected
    assert score(sampled[0], other, rows=ROWS) == expected


def test_sampling():
    lane = np.array([[10.0, 100.0], [20.0, 80.0], [40.0, 60.0]])
    rows = [101.0, 100.0, 90.0, 70.0, 60.0, 59.0]
    expected = [np.nan, 10, 15, 30, 40, np.nan]
    np.testing.assert_allclose(sample_lanes([lane], rows)[0], expected)
    np.testing.assert_allclose(sample_lanes([lane[::-1]], rows)[0], expected)
    broken = np.concatenate([lane, [[np.nan, 75.0], [np.inf, np.inf]]])
    np.testing.assert_allclose(sample_lanes([broken], rows)[0], expected)
    empty = sample_lanes([np.zeros((0, 2)), np.full((2, 2), np.nan)], rows)
    assert empty.shape == (2, 6)
    assert np.isnan(empty).all()
    assert sample_lanes([], rows).shape == (0, 6)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(gamma=0.0), 'gamma=0.0'),
        (dict(tau=-1.0), 'tau=-1.0'),
        (dict(tau=float('nan')), 'tau=nan'),
    ],
)
def test_refuses_bad_settings(kwargs, message):
    with pytest.raises(ValueError, match=message):
        score([], [], rows=ROWS, **kwargs)


def test_refuses_what_does_not_compare():
    with pytest.raises(ValueError, match='3 and at 4 rows'):
        score(np.zeros((1, 3)), np.zeros((1, 4)))
    with pytest.raises(ValueError, match='rows=None'):
        score(four_lanes(), four_lanes())
    with pytest.raises(ValueError, match='do not match the 28 rows'):
        score(np.zeros((1, 3)), np.zeros((1, 3)), rows=ROWS)
    with pytest.raises(ValueError, match=r'lane 0 has shape \(3, 3\)'):
        sample_lanes([np.zeros((3, 3))], ROWS)
    with pytest.raises(ValueError, match='NaN or infinity'):
        min_cost_assignment(np.array([[np.inf]]))


def test_example():
    module = importlib.import_module(
        'taskptq.methods.selective_focus.lane_distortion'
    )
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed


@pytest.mark.parametrize(
    ('change', 'share'),
    [
        (lambda lanes: lanes, 0.0),
        (lambda lanes: [np.add(lane, (6, 0)) for lane in lanes], 0.04),
        (lambda lanes: lanes[1:], 0.25),
        (lambda lanes: [], 1.0),
        # Half of each lane's rows are gone.
        (lambda lanes: [lane[lane[:, 1] > 420] for lane in lanes], 0.5),
        (lambda lanes: [np.add(lane, (40, 0)) for lane in lanes], 1.0),
    ],
)
def test_disagreement_is_a_share(change, share):
    lanes = four_lanes()
    found = lane_disagreement(lanes, change(lanes), rows=ROWS, width=30)
    assert found == pytest.approx(share, abs=0.04)
    back = lane_disagreement(change(lanes), lanes, rows=ROWS, width=30)
    assert back == found


def test_no_lanes_agree():
    assert lane_disagreement([], [], rows=ROWS, width=30) == 0
