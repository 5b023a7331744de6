"""What operators multiply, and whose values they keep."""

from __future__ import annotations

import math

import pytest
import torch

from taskptq.prepare.products_ops import kept_tensors, products_of

X = torch.randn(2, 5, 8)


def test_operands_are_the_tensors_themselves() -> None:
    bias, weight = torch.zeros(3), torch.randn(8, 3)
    (pair,) = products_of('addmm', (bias, X[0], weight), None)
    assert pair.first.data_ptr() == X.data_ptr()
    assert pair.second is weight
    assert pair.macs == 5 * 8 * 3
    (pair,) = products_of('mm', (X[0], weight), None)
    assert pair.second is weight


@pytest.mark.parametrize('transposed', [False, True])
def test_convolutions_by_their_flag(transposed: bool) -> None:
    x, weight = torch.randn(2, 4, 6, 6), torch.randn(4, 4, 3, 3)
    size = 8 if transposed else 4
    out = torch.randn(2, 4, size, size)
    args = (x, weight, None, [1, 1], [0, 0], [1, 1], transposed, [0, 0], 1)
    (pair,) = products_of('convolution', args, out)
    values = x if transposed else out
    assert pair.macs == values.numel() * 4 * 9


def test_attention_in_one_kernel_is_two_products() -> None:
    q, k = torch.randn(2, 3, 5, 8), torch.randn(2, 3, 7, 8)
    v = torch.randn(2, 3, 7, 4)
    name = '_scaled_dot_product_flash_attention_for_cpu'
    scores, values = products_of(name, (q, k, v), None)
    assert (scores.first, scores.second) == (q, k)
    assert scores.macs == 2 * 3 * 5 * 7 * 8
    # Softmax outputs never leave the kernel.
    assert values.first is None
    assert values.second is v
    assert values.macs == 2 * 3 * 5 * 7 * 4
    assert products_of(f'{name}_backward', (q, k, v), None) == []


def test_recurrent_layer_reads_inputs_and_states() -> None:
    of_input, of_state = torch.randn(12, 8), torch.randn(12, 3)
    pairs = products_of('mkldnn_rnn_layer', (X, of_input, of_state), None)
    assert [pair.macs for pair in pairs] == [10 * 12 * 8, 10 * 12 * 3]


@pytest.mark.parametrize('name', ['mul', 'sum', 'relu', 'softmax'])
def test_the_rest_multiplies_no_matrices(name: str) -> None:
    assert products_of(name, (X, X), X) == []
    assert kept_tensors(name, (X, X)) == []


def test_moved_values_are_kept() -> None:
    assert kept_tensors('permute', (X, [2, 0, 1])) == [X]
    pair = [torch.zeros(1), torch.ones(1)]
    assert kept_tensors('cat', (pair,)) == pair
    assert kept_tensors('constant_pad_nd', (X, [1, 1])) == [X]


@pytest.mark.parametrize(
    ('value', 'kept'),
    [(0, True), (0.0, True), (torch.zeros(()), True), (-math.inf, False)],
)
def test_only_zeros_may_be_added(value: object, kept: bool) -> None:
    """Zero is on every grid, minus infinity is on none."""
    mask = X > 0
    found = kept_tensors('masked_fill', (X, mask, value))
    assert [x is X for x in found] == [True] * kept
    if not isinstance(value, torch.Tensor):
        padded = kept_tensors('constant_pad_nd', (X, [1, 1], value))
        assert [x is X for x in padded] == [True] * kept
