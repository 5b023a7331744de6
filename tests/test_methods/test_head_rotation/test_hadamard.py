"""Hadamard matrices: orthogonal, of one magnitude, in all useful sizes."""

import pytest
import torch

from taskptq.methods.head_rotation.hadamard import (
    hadamard,
    has_hadamard,
    random_hadamard,
)


@pytest.mark.parametrize('size', [1, 2, 12, 16, 20, 24, 32, 48, 64, 80, 96])
def test_orthogonal_and_flat(size):
    matrix = hadamard(size)
    identity = torch.eye(size).double()
    torch.testing.assert_close(matrix @ matrix.T, identity, rtol=0, atol=1e-12)
    assert torch.allclose(
        matrix.abs(), torch.full_like(matrix, size**-0.5), rtol=1e-12
    )


def test_four():
    x = torch.tensor([8.0, 1, -1, 0]).double()
    assert (x @ hadamard(4)).tolist() == [4, 3, 5, 4]
    weight = torch.tensor([[1, 0, 2, -1], [0.5, 1, -1, 0]]).double()
    turned = (x @ hadamard(4)) @ (weight @ hadamard(4)).T
    assert turned.tolist() == (x @ weight.T).tolist() == [6, 6]


def test_random_signs():
    one, same, other = (random_hadamard(16, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    torch.testing.assert_close(
        one @ one.T, torch.eye(16).double(), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize('size', [0, -4, 3, 6, 10, 18, 1 << 20])
def test_sizes_without_one(size):
    assert not has_hadamard(size)
    with pytest.raises(ValueError, match=f'size={size}: give 2'):
        hadamard(size)
