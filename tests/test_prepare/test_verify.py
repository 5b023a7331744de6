"""What a batch contradicts is left as it is, by name, before any change."""

from __future__ import annotations

import copy
import functools
import logging

import pytest
import torch
from torch import Tensor, nn

from taskptq.core import float_only
from taskptq.hosts.registry import COUNTERPARTS
from taskptq.modules import QuantConv2d, QuantLinear, QuantModule
from taskptq.prepare import QConfig, SwapReport, prepare
from taskptq.prepare.compare import Check, counterpart
from taskptq.testing import TINY_MODELS, tiny_batches, tiny_model

W4 = QConfig.from_dict(
    {'weight': {'num_bits': 4}, 'activation': {'num_bits': 4}}
)
IMAGE = (2, 3, 10, 10)


def randomised(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.3, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return model.eval()


@torch.no_grad()
def check(
    model: nn.Module,
    x: Tensor,
    folded: list[str],
    *,
    tolerance: float = 1e-5,
) -> SwapReport:
    """Prepare on a batch: the folded norms, and the output as it was."""
    randomised(model)
    twin = copy.deepcopy(model)
    before = model(x)
    report = prepare(model, W4, batch=x)
    assert report.folded == folded
    with float_only(model):
        after = model(x)
    assert (after - before).abs().max() <= tolerance * before.abs().max()
    # A model without data gets the same structure from the decisions.
    again = prepare(twin, W4, decisions=report.decisions)
    assert again.folded == folded
    assert again.rows == report.rows
    assert twin.state_dict().keys() == model.state_dict().keys()
    for key, value in twin.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key
    return report


class ConvReluNorm(nn.Module):
    """Named as in a ResNet, but the norm follows the activation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.bn1(self.conv1(x).relu()))


class Overwritten(ConvReluNorm):
    """The activation changes the convolution's output in place."""

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.bn1(self.conv1(x).relu_()))


class Tapped(ConvReluNorm):
    """The convolution's output is also added."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        return self.conv2(self.bn1(y) + y)


class Returned(ConvReluNorm):
    """The convolution's output also leaves the model, unread."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x)
        self.last = y
        return self.conv2(self.bn1(y))


class Twice(ConvReluNorm):
    """The norm serves a second time."""

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.bn1(self.bn1(self.conv1(x))))


class ConvTwice(ConvReluNorm):
    """The convolution serves a second time, without the norm."""

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.bn1(self.conv1(x)) + self.conv1(x).relu())


class Sometimes(ConvReluNorm):
    """The norm runs on the second of two calls only."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)) + self.conv1(x)
        return self.conv2(y)


class WeightRead(ConvReluNorm):
    """The convolution's weight is read past its forward as well."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x))
        return self.conv2(y) * self.conv1.weight.mean()


@pytest.mark.parametrize(
    'kind',
    [
        ConvReluNorm,
        Overwritten,
        Tapped,
        Returned,
        Twice,
        ConvTwice,
        Sometimes,
        WeightRead,
    ],
)
def test_names_alone_fold_nothing(
    kind: type[nn.Module], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, 'taskptq'):
        report = check(kind(), torch.randn(IMAGE), [])
    assert list(report.decisions.kept_norms) == ['bn1']
    assert 'bn1 is not folded' in caplog.text


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


class Renamed(nn.Module):
    """Nothing in a name or class says that the norm follows."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce = nn.ConvTranspose2d(4, 6, 3, groups=2)
        self.after = nn.BatchNorm2d(6)
        self.stem = nn.Conv2d(3, 4, 1)
        self.fc = nn.Linear(6, 6)
        self.fc_norm = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.after(self.reduce(self.stem(x))).relu().mean(dim=(2, 3))
        return self.fc_norm(self.fc(x))


def test_what_the_batch_confirms_is_folded() -> None:
    report = check(Renamed(), torch.randn(IMAGE), ['after', 'fc_norm'])
    assert report.decisions.folded == (('reduce', 'after'), ('fc', 'fc_norm'))
    assert prepare(Renamed().eval(), W4).folded == []


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
    monkeypatch.setitem(COUNTERPARTS, f'{__name__}.Kind', (__name__, cls))
    model = Outer()
    with caplog.at_level(logging.WARNING, 'taskptq'):
        report = check(model, torch.randn(3, 4), [])
    assert type(model.b) is Kind
    assert isinstance(model.a, QuantLinear)
    rows = {row.name: row for row in report.rows}
    assert rows['b'].status == 'float'
    assert message in rows['b'].reason
    assert 'b stays float' in caplog.text


def test_nothing_changes_where_all_would_differ(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(COUNTERPARTS, f'{__name__}.Kind', (__name__, 'Off'))
    model = nn.Sequential(Kind(4, 4)).eval()
    weight = model[0].weight
    with pytest.raises(ValueError, match=r'no layer to quantize.*1\.00%'):
        prepare(model, W4, batch=torch.randn(3, 4))
    assert type(model[0]) is Kind
    assert model[0].weight is weight


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


class Branches(nn.Module):
    """An auxiliary head that evaluation never runs, and an empty one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.auxiliary = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.empty = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.unknown = ConvReluNorm()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        self.empty(x[:0])
        return x


def test_branches_without_data_are_folded_by_structure_only() -> None:
    model = Branches()
    report = check(
        model, torch.randn(IMAGE), ['stem.1', 'auxiliary.1', 'empty.1']
    )
    assert 'not reached' in report.decisions.kept_norms['unknown.bn1']
    assert isinstance(model.auxiliary[0], QuantConv2d)
    assert not report.decisions.left_float


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


def test_mode_generator_and_hooks_are_left_as_they_were() -> None:
    model, x = tiny_model('conv'), tiny_batches('conv')[0]

    def forward(m: nn.Module, batch: Tensor) -> Tensor:
        assert not m.training
        torch.rand(3)
        return m(batch)

    model.layer1.train()
    torch.manual_seed(0)
    prepare(model, W4, batch=x, forward=forward)
    drawn = torch.rand(1)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(1))
    assert model.layer1.training
    assert not model.head.training
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


def test_failing_forward_changes_nothing() -> None:
    model = tiny_model('conv')
    before = {n: id(m) for n, m in model.named_modules()}
    with pytest.raises(RuntimeError):
        prepare(model, W4, batch=torch.randn(1, 2, 8, 8))
    assert before == {n: id(m) for n, m in model.named_modules()}
    for module in model.modules():
        assert not module._forward_hooks


def test_ranks_agree_on_what_all_accept() -> None:
    model, x = tiny_model('conv'), tiny_batches('conv')[0]
    seen: list[set[str]] = []

    def agree(names: set[str]) -> set[str]:
        seen.append(names)
        return names - {'swap head', 'fold layer1.bn1', 'layer2.conv1'}

    report = prepare(model, W4, batch=x, agree=agree)
    assert len(seen) == 2
    assert set(report.decisions.left_float) == {'head', 'layer2.conv1'}
    assert 'layer1.bn1' in report.decisions.kept_norms
    assert type(model.head) is nn.Linear
    assert type(model.layer1.bn1) is nn.BatchNorm2d


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
