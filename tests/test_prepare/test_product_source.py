"""Which methods multiply, by their code."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import linear

from taskptq.prepare.product_source import product_methods


class Many(nn.Module):
    """Every way to write a product."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def operator(self, x: Tensor) -> Tensor:
        return x @ x

    def in_place(self, x: Tensor) -> Tensor:
        x @= x
        return x

    def of_tensor(self, x: Tensor) -> Tensor:
        return x.matmul(x)

    def of_torch(self, x: Tensor) -> Tensor:
        return torch.einsum('ij,jk->ik', x, x)

    def of_functional(self, x: Tensor) -> Tensor:
        return F.conv2d(x, x)

    def of_nn(self, x: Tensor) -> Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x)

    def imported(self, x: Tensor) -> Tensor:
        return linear(x, x)

    def inside(self, x: Tensor) -> list[Tensor]:
        return [row @ row for row in x]

    def layer_of_that_name(self, x: Tensor) -> Tensor:
        return self.linear(x)

    def elementwise(self, x: Tensor) -> Tensor:
        return torch.relu(x) * x


class Heir(Many):
    def operator(self, x: Tensor) -> Tensor:
        return x


def test_methods_that_multiply() -> None:
    assert set(product_methods(Many)) == {
        'operator',
        'in_place',
        'of_tensor',
        'of_torch',
        'of_functional',
        'of_nn',
        'imported',
        'inside',
    }


def test_what_a_subclass_replaces_counts_no_more() -> None:
    found = set(product_methods(Many)) - set(product_methods(Heir))
    assert found == {'operator'}


def test_layers_of_torch() -> None:
    assert product_methods(nn.ReLU) == ()
    assert product_methods(nn.Bilinear) == ()
    assert product_methods(nn.Conv1d) == ('_conv_forward',)
