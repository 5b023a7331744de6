"""The report names the points of products."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskptq.calibration import calibrate
from taskptq.prepare import QConfig, SwapRow, prepare
from taskptq.prepare.product_rows import add_own_products, with_products


class Layer(nn.Module):
    """A layer without a counterpart, and one whose weight it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.other = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x @ self.weight, self.other.weight)


def model() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 4), Layer())
    return layers.eval().requires_grad_(False)


def test_row_of_points_takes_the_place_of_the_float_layers() -> None:
    report = prepare(model(), QConfig.from_dict({}), batch=torch.randn(2, 4))
    rows = {row.name: (row.type, row.status) for row in report.rows}
    assert rows == {
        '0': ('Linear', 'quantized'),
        '1.other': ('Linear', 'quantized'),
        '1.products': ('Layer', 'quantized'),
    }


def test_calibration_adds_what_it_finds() -> None:
    net, x = model(), torch.randn(2, 4)
    report = prepare(net, QConfig.from_dict({}))
    assert '1.products' not in {row.name for row in report.rows}
    calibrate(net, [x], forward=lambda m, batch: m(batch))
    add_own_products(report, net)
    row = next(row for row in report.rows if row.name == '1.products')
    assert (row.weight_bits, row.activation_bits) == (8, 8)
    # without a batch nothing tells that the other weight is read past it
    assert row.attention_bits == 8
    assert [o['module'] for o in report.decisions.products] == ['1']


def test_rows_are_kept_and_added_once() -> None:
    net = model()
    report = prepare(net, QConfig.from_dict({}), batch=torch.randn(2, 4))
    assert with_products(report.rows, net) == report.rows
    kept = SwapRow(name='gone', type='Linear', status='float', reason='why')
    assert kept in with_products([kept], net)
