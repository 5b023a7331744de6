"""Points that only some ranks have found."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from taskptq.calibration import products as module
from taskptq.calibration.products import settle_products
from taskptq.core import QuantizerConfig
from taskptq.modules.base import Scheme
from taskptq.modules.product_mode import learning, own
from taskptq.modules.products import Point

SCHEME = Scheme(
    weight=QuantizerConfig(),
    activation=QuantizerConfig(),
    operand=QuantizerConfig(),
)


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3))

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x @ self.weight
        return x @ x.t()


def learned(x: Tensor) -> tuple[Branch, Any]:
    branch = Branch()
    points = own(branch, 'forward', scheme=SCHEME)
    with torch.no_grad(), learning(branch, observing=True):
        branch(x)
    return branch, points


def test_one_rank_keeps_what_it_found() -> None:
    model, points = learned(torch.ones(2, 3))
    before = points.all_points()
    settle_products(model)
    assert points.settled
    assert points.all_points() == before


def test_ranks_get_the_points_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = [learned(torch.ones(2, 3)), learned(-torch.ones(2, 3))]
    found: list[Any] = []
    monkeypatch.setattr(module, 'num_ranks', lambda: 2)
    monkeypatch.setattr(
        module, 'gathered', lambda v: (found.append(v), [v])[1]
    )
    for model, _ in ranks:
        settle_products(model)
    monkeypatch.setattr(module, 'gathered', lambda v: found)
    for model, _ in ranks:
        settle_products(model)
    first, second = (points for _, points in ranks)
    assert first.all_points() == second.all_points()
    assert len(first.all_points()) == 2
    names = [
        {name for name, _ in points.named_parameters()} for _, points in ranks
    ]
    assert names[0] == names[1]
    (weight,) = first.parameters(recurse=False)
    assert weight is ranks[0][0].weight
    observed = [
        {
            name
            for name, child in points.named_children()
            if child.observer is not None and child.observer.observed
        }
        for _, points in ranks
    ]
    # each keeps what it saw, under the common names
    assert {len(names) for names in observed} == {1, 2}
    assert not observed[0] & observed[1]


def test_observers_without_data_go_to_the_models_device() -> None:
    model = Branch().to('meta')
    points = own(model, 'forward', scheme=SCHEME)
    points.add(Point('matmul_0', 'forward', ('first', 'second')), None)
    settle_products(model)
    assert {buffer.device.type for buffer in points.buffers()} == {'meta'}
