"""Modules whose own code multiplies get points, and nothing else does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskptq.calibration import calibrate
from taskptq.core import enable, quantizing
from taskptq.core.distributed import gathered
from taskptq.hosts.registry import KEPT_FLOAT, dotted
from taskptq.modules.product_mode import all_products, is_owner
from taskptq.prepare import Decisions, QConfig, prepare
from taskptq.prepare import product_owners as owners_module
from taskptq.prepare.products import trace_products

assert gathered  # replaced below

POINTS = {'weight': {'num_bits': 8}, 'activation': {'num_bits': 8}}


class Attention(nn.Module):
    """As BEiT's: multiplies by a layer's weight, past the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.proj = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = F.linear(x, self.qkv.weight, self.qkv.bias).chunk(3, -1)
        return self.proj((q @ k.transpose(-2, -1)).softmax(-1) @ v)


class Masks(nn.Module):
    """As SOLOv2's: filters come from the image, one set for each."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.kernel(x)

    def predict(self, x: Tensor) -> Tensor:
        return torch.stack([self.one(y) for y in x])

    def one(self, x: Tensor) -> Tensor:
        filters = self(x)[:, :, None, None]
        return F.conv2d(x.t()[None, :, None], filters).squeeze()


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 8)
        self.attention = Attention()
        self.masks = Masks()
        self.pool = nn.Conv3d(1, 1, 1)
        self.unused = Attention()

    def forward(self, x: Tensor) -> Tensor:
        x = self.attention(self.stem(x))
        x = self.pool(x[:, None, None])[:, 0, 0]
        return self.masks.predict(x)


def forward(model: nn.Module, batch: Any) -> Any:
    return model(batch)


@pytest.fixture
def net() -> tuple[Net, Tensor]:
    torch.manual_seed(0)
    return Net().eval().requires_grad_(False), torch.randn(2, 6, 3)


def qconfig(**settings: Any) -> QConfig:
    return QConfig.from_dict(POINTS | settings)


def owners(model: nn.Module) -> list[str]:
    return [name.rpartition('.')[0] for name, _ in all_products(model)]


def test_batch_finds_owners_and_their_points(net: Any) -> None:
    model, x = net
    report = prepare(model, qconfig(), batch=x)
    by_name = {o['module']: o for o in report.decisions.products}
    assert sorted(by_name) == ['attention', 'masks', 'pool']
    assert by_name['masks']['methods'] == ['one']
    assert by_name['attention']['points'][0]['weight'] == (
        'attention.qkv.weight'
    )
    # what no batch reaches is judged by its code
    assert owners(model) == ['attention', 'masks', 'pool', 'unused']


def test_without_a_batch_code_decides(net: Any) -> None:
    model, x = net
    report = prepare(model, qconfig())
    assert report.decisions.products == ()
    assert owners(model) == ['attention', 'masks', 'pool', 'unused']
    calibrate(model, [x], forward=forward, unreached='float')
    counts = [len(p.all_points()) for _, p in all_products(model)]
    assert counts == [3, 1, 1, 0]


def test_all_products_run_quantized(net: Any) -> None:
    model, x = net
    report = prepare(model, qconfig(), batch=x)
    found = calibrate(model, [x], forward=forward, unreached='float')
    products = trace_products(model, [x], forward=forward)
    assert (products.one, products.none) == (0, 0)
    report.add_products(products, left_float=found.left_float)
    rows = {row.name: row for row in report.rows}
    assert rows['attention.products'].status == 'quantized'
    assert rows['attention.products'].type == 'Attention'
    assert rows['attention.products'].weight_bits == 8
    assert rows['attention.qkv'].reason == 'multiplied by attention.products'
    assert rows['pool.products'].macs == 2 * 6 * 8


def test_off_is_float(net: Any) -> None:
    model, x = net
    expected = model(x)
    prepare(model, qconfig(), batch=x)
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize(
    ('settings', 'expected'),
    [
        ({'products': False}, []),
        ({'keep_float': ['*.products']}, []),
        (
            {'keep_float': ['attention.products', 'unused*']},
            ['masks', 'pool'],
        ),
        ({'keep_float': ['pool']}, ['attention', 'masks', 'unused']),
    ],
)
def test_ways_out(net: Any, settings: Any, expected: Any) -> None:
    model, x = net
    prepare(model, qconfig(**settings), batch=x)
    assert owners(model) == expected


def test_overrides_and_edges_reach_points_by_name(net: Any) -> None:
    model, x = net
    override = {'pattern': 'attention.products', 'attention': {'num_bits': 5}}
    low = {'weight': {'num_bits': 4}, 'activation': {'num_bits': 4}}
    config = QConfig.from_dict(
        low | {'overrides': [override], 'edges': ['masks.products']}
    )
    report = prepare(model, config, batch=x)
    rows = {row.name: row for row in report.rows}
    attention, masks = rows['attention.products'], rows['masks.products']
    assert (attention.weight_bits, attention.attention_bits) == (4, 5)
    assert masks.attention_bits == 8


def test_pattern_that_names_nothing_is_still_refused(net: Any) -> None:
    model, x = net
    config = qconfig(keep_float=['atention.products'])
    with pytest.raises(ValueError, match=r'atention\.products'):
        prepare(model, config, batch=x)


def test_classes_that_stay_float_own_nothing(
    net: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = net
    monkeypatch.setitem(KEPT_FLOAT, dotted(Masks), 'by design')
    prepare(model, qconfig(), batch=x)
    assert not is_owner(model.masks)


def test_recorded_owners_are_restored_without_data(net: Any) -> None:
    model, x = net
    fresh = copy.deepcopy(model)
    report = prepare(model, qconfig(), batch=x)
    calibrate(model, [x], forward=forward, unreached='float')
    plain = report.decisions.to_dict()
    prepare(fresh, qconfig(), decisions=Decisions.from_dict(plain))
    assert owners(fresh) == ['attention', 'masks', 'pool']
    fresh.load_state_dict(model.state_dict(), strict=False)
    enable(fresh)
    with quantizing(model):
        assert torch.equal(fresh(x), model(x))


def change(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda owner: owner['points'][0].update({key: value})


@pytest.mark.parametrize(
    ('alter', 'message'),
    [
        (lambda o: o.update(module='nowhere'), "products of 'nowhere'"),
        (lambda o: o.update(module='stem'), "products of 'stem'"),
        (lambda o: o.update(methods=['nothing']), 'nothing is not one of'),
        (lambda o: o.update(methods=['__init__']), '__init__ is not one of'),
        (change('weight', 'nowhere.weight'), r'nowhere\.weight'),
        (change('weight', ''), 'weight'),
        (change('axis', 2), 'axis 2'),
    ],
)
def test_records_of_another_model_are_refused(
    net: Any, alter: Any, message: str
) -> None:
    model, x = net
    fresh = copy.deepcopy(model)
    report = prepare(model, qconfig(), batch=x)
    plain = report.decisions.to_dict()
    owner = next(o for o in plain['products'] if o['module'] == 'attention')
    alter(owner)
    with pytest.raises(ValueError, match=message):
        prepare(fresh, qconfig(), decisions=Decisions.from_dict(plain))


def test_owners_of_other_ranks_are_owners_here(
    net: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = net
    monkeypatch.setattr(
        owners_module,
        'gathered',
        lambda value: [value, {'masks': ('predict',)}],
    )
    prepare(model, qconfig(), batch=x)
    assert model.masks.product_methods == ('one', 'predict')
