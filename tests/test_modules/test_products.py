"""Products in a module's own code are quantized, and nothing else."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taskptq.core import QuantizerConfig, QuantSpec, enable, quantizing
from taskptq.core.switches import quantizers
from taskptq.modules.base import Scheme
from taskptq.modules.product_mode import all_products, learning, own
from taskptq.modules.products import (
    QuantProducts,
    stored_axis,
    stored_weight,
)

EIGHT = QuantizerConfig(per_channel=True)
SCHEME = Scheme(
    weight=EIGHT,
    activation=QuantizerConfig(),
    softmax=QuantizerConfig(),
    operand=QuantizerConfig(spec=QuantSpec(num_bits=4)),
)


class Mixed(nn.Module):
    """Weights read past a layer, an own one, and activations."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 12)
        self.table = nn.Parameter(torch.randn(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = F.linear(x, self.qkv.weight, self.qkv.bias).chunk(3, -1)
        x = F.scaled_dot_product_attention(q, k, v)
        gram = torch.einsum('bnc,bmc->bnm', x, x)
        return gram @ x @ self.table.t()


def learned(module: nn.Module, *batches: Any) -> QuantProducts:
    products = own(module, 'forward', scheme=SCHEME)
    with torch.no_grad(), learning(module, observing=True):
        for batch in batches:
            module(batch)
    for _, quantizer in quantizers(module):
        quantizer.calibrate()
    products.calibrate_weights()
    products.settled = True
    return products


@pytest.fixture
def mixed() -> tuple[Mixed, QuantProducts, Tensor, Tensor]:
    torch.manual_seed(0)
    module, x = Mixed().eval(), torch.randn(2, 5, 4)
    with torch.no_grad():
        before = module(x)
    return module, learned(module, x), x, before


def test_points_say_what_is_multiplied(mixed: Any) -> None:
    _, products, _, _ = mixed
    assert [(p.name, p.roles, p.axis) for p in products.all_points()] == [
        ('linear_0', ('input', 'weight'), 0),
        ('attention_1', ('query', 'key', 'value', 'softmax'), None),
        ('einsum_2', ('first', 'second'), None),
        ('matmul_3', ('first', 'second'), None),
        ('matmul_4', ('input', 'weight'), 0),
    ]
    assert products.linear_0_input_quantizer.spec.num_bits == 8
    assert products.einsum_2_first_quantizer.spec.num_bits == 4


def test_weights_are_the_parameters_themselves(mixed: Any) -> None:
    module, products, _, _ = mixed
    assert products.linear_0_weight is module.qkv.weight
    assert products.matmul_4_weight is module.table
    assert products.linear_0_weight_quantizer.scale.numel() == 12
    assert products.matmul_4_weight_quantizer.scale.numel() == 6


@torch.no_grad()
def test_off_is_float_and_on_is_near(mixed: Any) -> None:
    module, _, x, before = mixed
    assert torch.equal(module(x), before)
    with quantizing(module):
        after = module(x)
    gap = (after - before).abs().max() / before.abs().max()
    assert 0 < gap < 0.3


@torch.no_grad()
def test_by_hand() -> None:
    class Product(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ x.t()

    torch.manual_seed(0)
    module, x = Product(), torch.randn(3, 4)
    products = learned(module, x)
    with quantizing(module):
        found = module(x)
    grids = [child for _, child in quantizers(products)]
    first, second = (grid.fake_quantize for grid in grids)
    assert torch.equal(found, first(x) @ second(x.t()))


@torch.no_grad()
def test_frozen_weights_stay_on_their_grid(mixed: Any) -> None:
    module, products, x, _ = mixed
    with quantizing(module):
        before = module(x)
    products.freeze()
    enable(module)
    assert torch.equal(module(x), before)
    grid = products.linear_0_weight_quantizer
    weight = module.qkv.weight
    assert torch.equal(grid.dequantize(grid.quantize(weight)), weight)


@pytest.mark.parametrize(
    'copied', [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
@torch.no_grad()
def test_copies_compute_the_same(mixed: Any, copied: Any) -> None:
    module, _, x, _ = mixed
    twin = copied(module)
    assert twin.products is not module.products
    assert twin.products.linear_0_weight is twin.qkv.weight
    with quantizing(module), quantizing(twin):
        assert torch.equal(twin(x), module(x))


def test_gradients_reach_weights_and_inputs(mixed: Any) -> None:
    module, _, x, _ = mixed
    x = x.clone().requires_grad_()
    with quantizing(module):
        module(x).square().sum().backward()
    assert module.qkv.weight.grad.abs().sum() > 0
    assert module.table.grad.abs().sum() > 0
    assert x.grad.abs().sum() > 0


class Branch(nn.Module):
    """As many products as there are rows, and a rare one."""

    def forward(self, x: Tensor) -> Tensor:
        out = [row[None] @ x.t() for row in x]
        if x.max() > 9:
            out.append((x @ x.t())[:1])
        return torch.cat(out)


@torch.no_grad()
def test_any_number_of_calls_from_one_place() -> None:
    module = Branch().eval()
    products = learned(module, torch.rand(2, 3))
    assert len(products.all_points()) == 1
    with quantizing(module):
        for rows in (1, 7):
            x = torch.rand(rows, 3)
            assert not torch.equal(module(x), x @ x.t())


@torch.no_grad()
def test_a_place_that_calibration_missed_is_refused_by_name() -> None:
    module, x = Branch().eval(), torch.rand(2, 3)
    learned(module, x)
    module(10 * x + 10)  # float
    with (
        quantizing(module),
        pytest.raises(RuntimeError, match=r'Branch\.forward .* matmul'),
    ):
        module(10 * x + 10)


@torch.no_grad()
def test_a_place_that_only_training_has_stays_float() -> None:
    module, x = Branch(), torch.rand(2, 3)
    learned(module.eval(), x)
    with quantizing(module.train()):
        assert module(10 * x + 10).shape == (3, 2)


def test_layers_inside_are_not_quantized_twice() -> None:
    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ x.t()

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) @ x

    module = Outer().eval()
    own(module.inner, 'forward', scheme=SCHEME)
    learned(module, torch.randn(3, 3))
    counts = [len(p.all_points()) for _, p in all_products(module)]
    assert counts == [1, 1]


def test_empty_and_integer_operands_pass() -> None:
    class Pick(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x @ x.t()

    module = Pick().eval()
    products = learned(module, torch.zeros(0, 3), torch.ones(2, 2).long())
    assert products.all_points() == []


def test_views_of_a_weight_and_their_axes() -> None:
    weight = nn.Parameter(torch.randn(4, 6))
    cut = weight.t()[:, 1:3]
    assert stored_weight(cut) is weight
    assert stored_axis(cut, weight, -1) == 0
    assert stored_axis(cut, weight, 0) == 1
    assert stored_axis(weight.flatten(), weight, 0) is None
    assert stored_weight(weight * 2) is None
    assert stored_weight(torch.zeros(2)) is None


@torch.no_grad()
def test_a_cut_view_is_cut_from_the_whole_quantized_weight() -> None:
    class Cut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 6))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight.t()[:, 1:3]

    torch.manual_seed(0)
    module, x = Cut().eval(), torch.randn(2, 6)
    products = learned(module, x)
    with quantizing(module, activations=False):
        found = module(x)
    weight = products.matmul_0_weight_quantizer.fake_quantize(module.weight)
    torch.testing.assert_close(found, x @ weight.t()[:, 1:3])


class TwoDoors(nn.Module):
    """As SAM's prompt encoder: one product, a method for each prompt."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer('phases', torch.randn(2, 3))
        self.table = nn.Parameter(torch.randn(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] == 1:
            return self.points(x)
        if x.shape[0] == 3:
            return F.linear(x, self.table) @ x.new_ones(4, 3)
        return self.encode(x) + (x @ self.table.t())[:, :3]

    def points(self, x: Tensor) -> Tensor:
        return self.encode(x)

    def encode(self, x: Tensor) -> Tensor:
        return x @ self.phases


@pytest.fixture
def doors() -> tuple[TwoDoors, QuantProducts]:
    torch.manual_seed(0)
    module = TwoDoors().eval()
    return module, learned(module, torch.rand(4, 2))


@torch.no_grad()
def test_the_same_product_of_another_caller_is_quantized_alike(
    doors: Any, caplog: Any
) -> None:
    module, products = doors
    x = torch.rand(1, 2)
    count = len(products.all_points())
    with quantizing(module):
        found = module(x), module(x)
    first = products.matmul_0_first_quantizer.fake_quantize(x)
    second = products.matmul_0_second_quantizer.fake_quantize(module.phases)
    assert torch.equal(found[0], first @ second)
    assert torch.equal(found[1], found[0])
    assert len(products.all_points()) == count
    assert len(caplog.records) == 1
    assert 'points+' in caplog.text
    assert 'takes the ranges of' in caplog.text


@torch.no_grad()
def test_a_weight_keeps_its_grid_in_another_line(doors: Any) -> None:
    module, products = doors
    x = torch.rand(3, 2)
    weight = products.matmul_1_weight_quantizer
    with quantizing(module), pytest.raises(RuntimeError, match='no calib'):
        module(x)  # the product after it has no other place
    (point,) = (p for same in products.borrowed.values() for p in same)
    assert point.weight == 'matmul_1_weight'
    assert weight.calibrated


@torch.no_grad()
def test_training_borrows_without_a_word(doors: Any, caplog: Any) -> None:
    module, _ = doors
    x = torch.rand(1, 2)
    with quantizing(module.train()):
        assert not torch.equal(module(x), x @ module.phases)
    assert not caplog.records
