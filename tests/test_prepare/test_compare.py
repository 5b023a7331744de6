"""A counterpart and its float module, side by side."""

from __future__ import annotations

import copy

import pytest
import torch
from norm_checks import W4, check, randomised
from torch import Tensor, nn

from taskptq.modules import QuantLinear
from taskptq.prepare import prepare
from taskptq.prepare.compare import (
    Check,
    cloned,
    counterpart,
    fold_gap,
    outputs,
)
from taskptq.testing import tiny_batches, tiny_model


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    # One rounding of bfloat16 is forty times the tolerance.
    model = tiny_model('conv').to(dtype)
    x = tiny_batches('conv')[0].to(dtype)
    tolerance = 0.05 if dtype is torch.bfloat16 else 1e-9
    check(
        model,
        x,
        prepare(tiny_model('conv'), W4, batch=x.float()).folded,
        tolerance=tolerance,
    )


def test_nan_and_infinity_of_the_float_model_are_no_difference() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).eval()
    x = torch.randn(3, 4)
    x[0, 0] = torch.nan
    x[1] = torch.inf
    assert not prepare(model, W4, batch=x).decisions.left_float


def test_inputs_that_are_overwritten_are_compared_as_they_came() -> None:

    class Before(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
            self.fc = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.attn(x, x, x)[0]
            x.mul_(2)
            return self.fc(x).add_(y)

    model = Before().eval()
    report = prepare(model, W4, batch=None, forward=None)
    model = Before().eval()
    report = prepare(
        model,
        W4,
        batch=torch.randn(2, 5, 8),
        forward=lambda m, x: m(x.clone()),
    )
    assert not report.decisions.left_float


def test_counterpart_of_a_check_is_off() -> None:
    module = nn.Linear(4, 4)
    quant = counterpart(
        Check(
            'fc',
            module,
            QuantLinear,
            W4.scheme('fc', edge=False, positions=False),
        )
    )
    assert quant.weight is module.weight
    x = torch.randn(2, 4)
    assert torch.equal(quant(x), module(x))


def test_half_precision_is_compared_in_float32() -> None:
    """One rounding of bfloat16 would hide a difference of 1e-3."""
    layer = nn.Linear(8, 8).to(torch.bfloat16)
    twin = copy.deepcopy(layer)
    x = torch.randn(3, 8).to(torch.bfloat16)
    found, expected = outputs(twin, layer, ((x,), {}), layer(x))
    assert found.dtype == expected.dtype == torch.float32
    assert torch.equal(found, expected)
    with torch.no_grad():
        twin.weight[0, 0] += 0.05
    found, expected = outputs(twin, layer, ((x,), {}), layer(x))
    assert not torch.equal(found[:, 0], expected[:, 0])
    assert torch.equal(found[:, 1:], expected[:, 1:])


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_gap_of_a_fold(dtype: torch.dtype) -> None:
    """A fold into the layer before is exact; into another one, it is not."""
    layer, other = nn.Linear(4, 6), nn.Linear(4, 6)
    model = randomised(nn.Sequential(layer, nn.BatchNorm1d(6), other))
    norm = model.to(dtype)[1]
    x = torch.randn(5, 4).to(dtype)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    assert fold_gap(layer, norm, ((x,), {}), layer(x)) < 1e-5
    if dtype is torch.float32:
        assert fold_gap(layer, norm, ((x,), {}), other(x)) > 0.1
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])


def test_one_tensor_in_a_nesting_stays_one() -> None:
    x = torch.randn(2, 3)
    copies = cloned({'a': (x, x), 'b': [x.view(3, 2), x], 'c': 'text'})
    first, second = copies['a']
    assert first is second is copies['b'][1]
    assert first is not x
    assert torch.equal(first, x)
    assert copies['b'][0] is not first
    assert copies['c'] == 'text'
