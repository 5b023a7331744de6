"""What a batch contradicts is left as it is, by name, before any change."""

from __future__ import annotations

import copy
import functools
import logging

import pytest
import torch
from norm_checks import W4, check, randomised
from torch import Tensor, nn

from taskptq.core import float_only
from taskptq.hosts.registry import COUNTERPARTS
from taskptq.modules import QuantConv2d, QuantLinear, QuantModule
from taskptq.prepare import QConfig, prepare
from taskptq.testing import TINY_MODELS, tiny_batches, tiny_model

IMAGE = (2, 3, 10, 10)


class Residual(nn.Sequential):
    """A Sequential by inheritance only."""

    def forward(self, x: Tensor) -> Tensor:
        y = self[0](x)
        return y + self[2](self[1](y.relu()))


def test_sequence_with_its_own_order_is_not_folded() -> None:
    check(
        Residual(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)),
        torch.randn(IMAGE),
        [],
    )


def test_linear_on_tokens_keeps_its_norm() -> None:

    class Tokens(nn.Module):
        """As many tokens as channels: no shape tells the axes apart."""

        def __init__(self) -> None:
            super().__init__()
            self.seq = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6))

        def forward(self, x: Tensor) -> Tensor:
            return self.seq(x)

    report = check(Tokens(), torch.randn(2, 6, 6), [])
    assert 'axis' in report.decisions.kept_norms['seq.1']


@pytest.mark.parametrize('build', ['plain', 'sync', 'reverted'])
def test_one_structure_however_sync_norms_were_built(build: str) -> None:
    utils = pytest.importorskip('mmengine.model')
    model: nn.Module = tiny_model('conv')
    expected = prepare(tiny_model('conv'), W4, batch=tiny_batches('conv')[0])
    if build != 'plain':
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if build == 'reverted':
        model = utils.revert_sync_batchnorm(model)
    names = {name: type(module) for name, module in model.named_modules()}
    report = check(model, tiny_batches('conv')[0], expected.folded)
    assert len(report.folded) == 6
    assert report.decisions == expected.decisions
    assert report.rows == expected.rows
    assert (nn.BatchNorm2d in names.values()) == (build == 'plain')


def test_norm_of_its_own_kind_is_kept() -> None:

    class WithRelu(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).relu()

    check(
        nn.Sequential(nn.Conv2d(3, 4, 1), WithRelu(4)), torch.randn(IMAGE), []
    )


@pytest.mark.parametrize('name', TINY_MODELS)
def test_tiny_models_are_confirmed_whole(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    model, x = tiny_model(name), tiny_batches(name)[0]
    with caplog.at_level(logging.WARNING, 'taskptq'):
        report = check(
            model, x, prepare(copy.deepcopy(model), W4, batch=x).folded
        )
    assert not report.decisions.left_float
    assert not report.decisions.kept_norms
    assert not caplog.records


class Off(QuantLinear):
    """A counterpart that computes something else."""

    def forward(self, x: Tensor, **kwargs: bool) -> Tensor:
        return super().forward(x, **kwargs) * 1.01


class Failing(QuantLinear):
    """A counterpart that lacks an argument of its float class."""

    def forward(self, x: Tensor, *, needed: int) -> Tensor:
        return super().forward(x)


class Kind(nn.Linear):
    """What the test maps."""


class Outer(nn.Module):
    """One mapped layer between two known ones."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)
        self.b = Kind(4, 4)
        self.c = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x)))


@pytest.mark.parametrize(
    ('cls', 'message'), [('Off', 'differs by 1.00%'), ('Failing', 'TypeError')]
)
def test_counterpart_that_differs_is_left_out(
    cls: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(COUNTERPARTS, f'{__name__}.Kind', f'{__name__}.{cls}')
    model = Outer()
    with caplog.at_level(logging.WARNING, 'taskptq'):
        report = check(model, torch.randn(3, 4), [])
    assert type(model.b) is Kind
    assert isinstance(model.a, QuantLinear)
    rows = {row.name: row for row in report.rows}
    assert rows['b'].status == 'float'
    assert message in rows['b'].reason
    assert 'b stays float' in caplog.text


class ReadsWeight(nn.Module):
    """Multiplies by a layer's weight, as BEiT's attention does."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 4)
        self.proj = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(nn.functional.linear(x, self.qkv.weight))


def test_layer_whose_weight_is_read_directly_stays_float() -> None:
    model = ReadsWeight()
    report = check(model, torch.randn(3, 4), [])
    assert 'read past its forward' in report.decisions.left_float['qkv']
    assert isinstance(model.proj, QuantLinear)
    assert type(model.qkv) is nn.Linear


@pytest.mark.parametrize('products', [False, True])
def test_weight_that_a_product_reads_is_not_called_float(
    products: bool, caplog: pytest.LogCaptureFixture
) -> None:
    config = QConfig.from_dict(dict(products=products, edge_bits=None))
    with caplog.at_level(logging.WARNING, 'taskptq'):
        prepare(ReadsWeight().eval(), config, batch=torch.randn(3, 4))
    assert ('qkv stays float' in caplog.text) is not products


def test_shape_of_a_weight_is_no_use_of_it() -> None:

    class Shaped(ReadsWeight):
        def forward(self, x: Tensor) -> Tensor:
            zeros = self.qkv.weight.new_zeros(4)
            return self.proj(self.qkv(x) + zeros.to(self.proj.weight.dtype))

    assert not check(Shaped(), torch.randn(3, 4), []).decisions.left_float


class Held(nn.Module):
    """Runs its layers from a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        self.last = nn.Conv2d(4, 4, 1)
        self.steps = [self.conv, (self.norm, {'last': self.last})]

    def forward(self, x: Tensor) -> Tensor:
        conv, (norm, others) = self.steps
        return others['last'](norm(conv(x)))


def test_plain_lists_are_swapped_and_folded_as_well() -> None:
    model = Held()
    check(model, torch.randn(IMAGE), ['norm'])
    assert model.steps[0] is model.conv
    assert isinstance(model.conv, QuantConv2d)
    assert model.steps[1][1]['last'] is model.last
    assert type(model.steps[1][0]) is nn.Identity


class Closure(Held):
    """Runs a layer from where nothing can put another one."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.steps = []
        module = getattr(self, name)
        self.run = functools.partial(lambda x, inner: inner(x), inner=module)
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        x = self.run(x) if self.name == 'conv' else self.conv(x)
        return self.last(self.run(x) if self.name == 'norm' else self.norm(x))


def test_layer_held_out_of_reach_stays_float() -> None:
    model = randomised(Closure('conv'))
    x = torch.randn(IMAGE)
    with torch.no_grad():
        before = model(x)
        report = prepare(model, W4, batch=x)
        with float_only(model):
            torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)
    assert type(model.conv) is nn.Conv2d
    assert 'neither an attribute' in report.decisions.left_float['conv']
    assert [r.status for r in report.rows] == ['float', 'quantized']


def test_norm_held_out_of_reach_is_refused_by_name() -> None:
    model = randomised(Closure('norm'))
    with pytest.raises(ValueError, match=r'norm is folded.*still calls it'):
        prepare(model, W4, batch=torch.randn(IMAGE))


def test_scripted_part_is_listed_and_left_alone() -> None:
    part = torch.jit.script(
        nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)).eval()
    )
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), part, nn.Conv2d(8, 4, 1)
    )
    x = torch.randn(IMAGE)
    model.eval()
    with torch.no_grad():
        before = model(x)
        report = prepare(model, W4, batch=x)
        torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)
    rows = {row.name: row for row in report.rows}
    assert set(rows) == {'0', '2', '3'}
    assert rows['2'].status == 'float'
    assert 'scripted' in rows['2'].reason


def test_many_calls_are_compared_a_few_times_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs: list[QuantModule] = []
    forward = QuantLinear.forward

    def counting(self: QuantLinear, x: Tensor, **kwargs: bool) -> Tensor:
        runs.append(self)
        return forward(self, x, **kwargs)

    monkeypatch.setattr(QuantLinear, 'forward', counting)

    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(20):
                x = self.fc(x).tanh()
            return x

    prepare(Loop().eval(), W4, batch=torch.randn(3, 4))
    assert len(runs) == 4 + 20
