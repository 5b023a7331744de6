"""Values of all ranks, and of the one rank that there is without others."""

import pytest
import torch

from taskptq.core import distributed


class TwoRanks:
    """torch.distributed as rank 1 of 2 sees it; rank 0 sent ``other``."""

    def __init__(self, other):
        self.other = other

    def is_available(self):
        return True

    is_initialized = is_available

    def get_rank(self):
        return 1

    def get_world_size(self):
        return 2

    def all_reduce(self, value):
        value += self.other

    def all_gather_object(self, values, value):
        values[:] = [self.other, value]


@pytest.fixture
def rank(monkeypatch):
    def start(other):
        monkeypatch.setattr(distributed, 'dist', TwoRanks(other))

    return start


def test_alone():
    value = torch.tensor([1.0, 2.0])
    assert not distributed.is_distributed()
    assert (distributed.own_rank(), distributed.num_ranks()) == (0, 1)
    assert distributed.mean_over_ranks(value) is value
    assert distributed.gathered({'a': 1}) == [{'a': 1}]


def test_mean_leaves_the_own_value(rank):
    rank(torch.tensor([3.0, 0.0]))
    value = torch.tensor([1.0, 2.0])
    assert distributed.mean_over_ranks(value).tolist() == [2.0, 1.0]
    assert value.tolist() == [1.0, 2.0]


def test_values_come_in_the_order_of_ranks(rank):
    rank({'rank': 0})
    assert (distributed.own_rank(), distributed.num_ranks()) == (1, 2)
    found = distributed.gathered({'rank': 1})
    assert found == [{'rank': 0}, {'rank': 1}]
