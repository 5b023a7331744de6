"""Where functions of torch take their operands."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from taskptq.modules.product_calls import ATTENTION, CALLS

A, B = torch.ones(2, 3, 4), torch.ones(2, 4, 5)
BIAS = torch.zeros(2, 3, 5)
IMAGE, KERNEL = torch.ones(1, 4, 6, 6), torch.ones(8, 4, 3, 3)
CASES: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = [
    (torch.matmul, (A, B), {}),
    (torch.matmul, (A,), {'other': B}),
    (Tensor.matmul, (A, B), {}),
    (Tensor.__rmatmul__, (B, A), {}),
    (torch.bmm, (A, B), {}),
    (torch.bmm, (), {'input': A, 'mat2': B}),
    (torch.baddbmm, (BIAS, A, B), {}),
    (Tensor.baddbmm_, (BIAS.clone(), A, B), {'beta': 0.5}),
    (torch.einsum, ('bnk,bkm->bnm', A, B), {}),
    (torch.einsum, ('bnk,bkm->bnm', [A, B]), {}),
    (torch.conv2d, (IMAGE, KERNEL), {'padding': 1}),
    (torch.conv2d, (), {'input': IMAGE, 'weight': KERNEL}),
]


@pytest.mark.parametrize(('func', 'args', 'kwargs'), CASES)
def test_operands_are_found_and_replaced(
    func: Any, args: Any, kwargs: Any
) -> None:
    call = CALLS[func]
    first, second = call.operands(args, kwargs)
    assert {id(first), id(second)} in (
        {id(A), id(B)},
        {id(IMAGE), id(KERNEL)},
    )
    bias = args[0].clone() if func is Tensor.baddbmm_ else None
    expected = (
        2
        * 3
        * func(*([bias, *args[1:]] if bias is not None else args), **kwargs)
    )
    new_args, new_kwargs = call.replaced(args, kwargs, [2 * first, 3 * second])
    torch.testing.assert_close(func(*new_args, **new_kwargs), expected)


@pytest.mark.parametrize(
    ('func', 'args'),
    [
        (torch.matmul, (A.long(), B)),
        (torch.matmul, (A.to_sparse(), B)),
        (torch.einsum, ('bnk,bkm,bmn->b', A, B, B)),
        (torch.einsum, ('bnk->bn', A)),
        (torch.mm, (A[0],)),
    ],
)
def test_what_is_no_product_of_two_float_tensors(func: Any, args: Any) -> None:
    assert CALLS[func].operands(args, {}) == []


@pytest.mark.parametrize(
    ('equation', 'expected'),
    [
        ('bqc,bchw->bqhw', (1, 3)),
        ('nk, km -> nm', (0, 1)),
        ('ij,ij->ij', (None, None)),
        ('...k,km->...m', (None, None)),
        ('nk,km', (None, None)),
    ],
)
def test_output_axes_of_einsum(equation: str, expected: Any) -> None:
    assert CALLS[torch.einsum].output_axes((equation,)) == expected


def test_convolutions_differ_by_the_channels_of_a_filter() -> None:
    convolve, transposed = CALLS[F.conv2d], CALLS[F.conv_transpose2d]
    assert convolve.signature([IMAGE, KERNEL]) == '4'
    assert transposed.signature([IMAGE, KERNEL]) == '8'
    assert CALLS[torch.matmul].signature([A, B]) == ''


def test_attention_has_three_operands() -> None:
    q, k, v = A, A + 1, A + 2
    found = ATTENTION.operands((q, k), {'value': v})
    assert [id(x) for x in found] == [id(q), id(k), id(v)]
