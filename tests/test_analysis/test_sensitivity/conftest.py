"""A small network with one wild tensor, calibrated."""

import pytest
import torch
from wild_net import PlainAdapter, WildNet, prepared


@pytest.fixture
def adapter():
    return PlainAdapter()


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 3, 8, 8, generator=generator) for _ in range(2)]


@pytest.fixture
def wild(batches):
    return prepared(WildNet(), batches)
