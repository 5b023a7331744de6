"""Lane files: what is written is read again, and what is wrong is named."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lane_detection.datasets.lane_files import (
    format_culane,
    lanes_to_rows,
    parse_culane,
    read_culane,
    read_curvelanes,
    rows_to_lanes,
    write_culane,
)

H_SAMPLES = list(range(240, 720, 10))


def lane_of(xs, *, bottom=590):
    ys = bottom - 10 * np.arange(len(xs))
    return np.stack([xs, ys], axis=1).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.lists(st.floats(-500, 2200), min_size=1, max_size=20), max_size=5
    )
)
def test_culane_round_trip(lanes):
    lanes = [lane_of(xs) for xs in lanes]
    again = parse_culane(format_culane(lanes), path='file')
    assert len(again) == len(lanes)
    for before, after in zip(lanes, again, strict=True):
        np.testing.assert_allclose(after, before, atol=6e-4)


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('', []),
        ('\n  \n', []),
        # Trailing blanks, x left of the image, a lane of one point.
        (
            '-12.5 590 3 580 \n\n7 590\n',
            [[[-12.5, 590], [3, 580]], [[7, 590]]],
        ),
        # From the top down, and a repeated point.
        ('1 570 2 580 2 580 3 590', [[[3, 590], [2, 580], [1, 570]]]),
        ('5 590 4 580\r\n', [[[5, 590], [4, 580]]]),
    ],
)
def test_parse_culane(text, expected):
    found = parse_culane(text, path='file')
    assert [lane.tolist() for lane in found] == expected
    assert all(lane.dtype == np.float32 for lane in found)


@pytest.mark.parametrize('text', ['1 2 3', '1 x', 'nan 590 3 580'])
def test_malformed_culane(text):
    with pytest.raises(ValueError, match=r'a\.lines\.txt:2 .* of one lane'):
        parse_culane(f'1 590 2 580\n{text}', path='a.lines.txt')


def test_culane_files(tmp_path):
    path = tmp_path / 'clip/1.lines.txt'
    write_culane([lane_of([1, 2, 3])], path)
    np.testing.assert_allclose(read_culane(path)[0], lane_of([1, 2, 3]))
    with pytest.raises(FileNotFoundError, match='annotations_new'):
        read_culane(tmp_path / 'none.lines.txt')


def test_curvelanes(tmp_path):
    path = tmp_path / 'a.lines.json'
    lines = [[{'x': '10.5', 'y': '700'}, {'x': '20', 'y': '600.25'}], []]
    path.write_text(json.dumps({'Lines': lines}))
    assert [lane.tolist() for lane in read_curvelanes(path)] == [
        [[10.5, 700], [20, 600.25]]
    ]
    for text in ('{"lines": []}', '{"Lines": [[{"x": "a", "y": 1}]]}', '{'):
        path.write_text(text)
        with pytest.raises(ValueError, match='is not of the form'):
            read_curvelanes(path)
    with pytest.raises(FileNotFoundError, match='labels/NAME'):
        read_curvelanes(tmp_path / 'b.lines.json')


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 40), st.integers(2, 8), st.integers(0, 999))
def test_tusimple_round_trip(start, length, seed):
    rng = np.random.default_rng(seed)
    row = np.full(len(H_SAMPLES), -2.0)
    row[start : start + length] = rng.uniform(0, 1279, length).round(2)
    lanes = rows_to_lanes([row.tolist(), [-2] * len(row)], H_SAMPLES)
    # A lane without any point is no lane.
    assert len(lanes) == 1
    assert lanes[0][0, 1] > lanes[0][-1, 1]
    again = lanes_to_rows(lanes, H_SAMPLES, width=1280)
    np.testing.assert_allclose(again[0], row, atol=1e-3)


def test_rows_outside_of_the_image_are_absent():
    lane = np.array([[-50, 710], [1400, 250]], dtype=np.float32)
    row = np.array(lanes_to_rows([lane], H_SAMPLES, width=1280)[0])
    there = row != -2
    assert ((row[there] >= 0) & (row[there] < 1280)).all()
    assert 0 < there.sum() < len(row)
    outside = lane - (5000, 0)
    assert lanes_to_rows([outside, outside[:0]], H_SAMPLES, width=1280) == []


def test_rows_of_wrong_length():
    with pytest.raises(ValueError, match='3 values, but h_samples has 48'):
        rows_to_lanes([[1, 2, 3]], H_SAMPLES)
