"""Equal calls in groups, and rows drawn over all of them."""

import numpy as np
import pytest
import torch

from taskptq.reconstruction.capture.row_sampling import (
    add_to_group,
    draw_group,
    first_places,
    is_same,
    locate_rows,
)


def test_groups_by_signature_in_the_order_of_their_first():
    groups = []
    for member, signature in enumerate(['a', 'b', 'a', 'c', 'b']):
        add_to_group(member, signature, groups)
    assert groups == [('a', [0, 2]), ('b', [1, 4]), ('c', [3])]


def test_what_cannot_be_compared_is_a_group_of_its_own():
    groups = []
    for member in range(2):
        add_to_group(member, {'mask': np.zeros(3)}, groups)
    assert [members for _, members in groups] == [[0], [1]]
    assert not is_same([torch.zeros(2)], [torch.zeros(2)])
    assert is_same({'a': (1, 'x')}, {'a': (1, 'x')})


def test_single_group_draws_nothing():
    state = torch.get_rng_state()
    assert draw_group(['only'], [3]) == 'only'
    assert torch.equal(state, torch.get_rng_state())


def test_groups_are_drawn_by_weight():
    drawn = [draw_group(['a', 'b', 'c'], [1, 3, 0]) for _ in range(400)]
    assert drawn.count('c') == 0
    assert drawn.count('b') / 400 == pytest.approx(0.75, abs=0.07)


@pytest.mark.parametrize('counts', [[2, 3], [5], [1, 0, 4], [0, 0, 5]])
def test_every_row_lies_in_one_place(counts):
    start = np.cumsum([0, *counts])
    places = locate_rows(list(range(5)), counts)
    found = [start[place] + row for place, rows in places for row in rows]
    assert found == list(range(5))
    assert all(rows for _, rows in places)
    assert all(max(rows) < counts[place] for place, rows in places)


def test_order_within_a_place_is_that_of_the_draw():
    assert locate_rows([4, 0, 3], [2, 3]) == [(0, [0]), (1, [2, 1])]


def test_equal_members_share_the_first_place():
    assert first_places(['q', 'k', 'q', 'v', 'k']) == [0, 1, 0, 3, 1]
