"""What a layer's weights multiply, operand by operand."""

import pytest
import torch
from torch import nn

from taskptq.core import float_only, quantizing
from taskptq.reconstruction.rounding.layer_inputs import (
    by_rows,
    listening,
    matmul_of,
)


class Attending(nn.Module):
    """An attention whose value is another tensor than its query and key."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x + 1)[0]


@pytest.fixture
def heard():
    """Run a model and return what a layer of it received."""

    def run(model, layer, x, mode):
        found = []
        with (
            torch.no_grad(),
            mode(model),
            listening(layer, lambda *pair: found.append(pair)),
        ):
            model(x)
        assert not layer._forward_pre_hooks
        return found

    return run


def test_inputs_are_those_of_the_mode(quantized, heard):
    x = torch.randn(4, 6)
    model = quantized(nn.Sequential(nn.Linear(6, 5)), [x], bits=3)
    layer = model[0]
    ((key, exact),) = heard(model, layer, x, float_only)
    ((_, rounded),) = heard(model, layer, x, quantizing)
    assert key == 'weight'
    assert torch.equal(exact, x)
    with quantizing(model):
        assert torch.equal(rounded, layer.input_quantizer(x))
    assert not torch.equal(rounded, x)
    assert matmul_of(layer) is layer


def test_empty_inputs_are_left_out(quantized, heard):
    x = torch.randn(4, 6)
    model = quantized(nn.Sequential(nn.Linear(6, 5)), [x])
    assert heard(model, model[0], x[:0], float_only) == []


def test_projections_receive_three_operands(quantized, heard):
    x = torch.randn(2, 5, 8)
    model = quantized(Attending(), [x])
    layer = model.attention
    found = heard(model, layer, x, quantizing)
    assert [key for key, _ in found] == ['q', 'k', 'v']
    assert torch.equal(found[0][1], found[1][1])
    rows = by_rows(dict(found), layer, 'in_proj_weight')
    assert [(r.start, r.stop) for r, _ in rows] == [(0, 8), (8, 16), (16, 24)]
    assert torch.equal(rows[2][1], found[2][1])
    assert matmul_of(layer) is None
    assert by_rows({}, layer, 'in_proj_weight') == []
