"""What ran quantized, against counts that are made in other ways."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module as torch_hooks
from torch.utils.flop_counter import FlopCounterMode

from taskptq.calibration import calibrate
from taskptq.core import AffineQuantizer, QuantSpec, quantizing
from taskptq.prepare import QConfig, prepare
from taskptq.prepare.products import read_past, trace_products
from taskptq.testing import TINY_MODELS, tiny_batches, tiny_model


def forward(model, batch):
    return model(batch)


def prepared(model, batch, unreached='error', **settings):
    """Prepare and calibrate; returns the swap report as well."""
    model.eval().requires_grad_(False)
    report = prepare(model, QConfig.from_dict({'edge_bits': None} | settings))
    found = calibrate(model, [batch], forward=forward, unreached=unreached)
    return report, found


def quantizer(size=None):
    """A quantizer with a range, off until a context turns it on."""
    made = AffineQuantizer(QuantSpec(num_bits=8, ch_axis=size))
    made.set_bounds(signed=False)
    made.set_range(torch.tensor([-1.0]), torch.tensor([1.0]))
    return made


class Multiplies(nn.Module):
    """Quantizes both tensors, moves the first by ``change``, multiplies."""

    def __init__(self, change, product=torch.matmul):
        super().__init__()
        self.first = quantizer()
        self.second = quantizer()
        self.change, self.product = change, product

    def forward(self, x):
        return self.product(self.change(self.first(x)), self.second(x))


class Runs(nn.Module):
    """Calls a function on its input."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def counted(function, x):
    """Return the totals of one function on float tensors."""
    return trace_products(Runs(function), [x], forward=forward)


X = torch.randn(2, 4, 6, 6)
TOKENS = torch.randn(2, 5, 8)
FUNCTIONS = {
    # name -> (what runs, its input, multiply-accumulates by hand)
    'conv2d': (lambda x: F.conv2d(x, torch.randn(8, 4, 3, 3)), X,
               2 * 8 * 4 * 4 * 4 * 9),
    'conv2d groups': (
        lambda x: F.conv2d(x, torch.randn(8, 2, 3, 3), groups=2, padding=1),
        X, 2 * 8 * 36 * 2 * 9),
    'conv1d': (lambda x: F.conv1d(x, torch.randn(3, 5, 2)), TOKENS,
               2 * 3 * 7 * 5 * 2),
    'conv3d': (lambda x: F.conv3d(x[None], torch.randn(3, 2, 1, 3, 3)), X,
               3 * 4 * 4 * 4 * 2 * 9),
    'conv_transpose2d': (
        lambda x: F.conv_transpose2d(x, torch.randn(4, 3, 2, 2), stride=2),
        X, 2 * 4 * 36 * 3 * 4),
    'conv_transpose2d groups': (
        lambda x: F.conv_transpose2d(x, torch.randn(4, 3, 2, 2), groups=2),
        X, 2 * 4 * 36 * 3 * 4),
    'linear': (lambda x: F.linear(x, torch.randn(3, 8), torch.randn(3)),
               TOKENS, 2 * 5 * 8 * 3),
    'matmul': (lambda x: x @ x.mT, TOKENS, 2 * 5 * 8 * 5),
    'mm': (lambda x: torch.mm(x[0], x[0].t()), TOKENS, 5 * 8 * 5),
    'mv': (lambda x: torch.mv(x[0], x[0, 0]), TOKENS, 5 * 8),
    'dot': (lambda x: torch.dot(x[0, 0], x[0, 1]), TOKENS, 8),
    'bmm out': (
        lambda x: torch.bmm(x, x.mT, out=torch.empty(2, 5, 5)), TOKENS,
        2 * 5 * 8 * 5),
    'addmm in place': (
        lambda x: torch.zeros(5, 5).addmm_(x[0], x[0].t()), TOKENS,
        5 * 8 * 5),
    'baddbmm': (
        lambda x: torch.baddbmm(torch.zeros(1), x, x.mT), TOKENS,
        2 * 5 * 8 * 5),
    'baddbmm in place': (
        lambda x: torch.zeros(2, 5, 5).baddbmm_(x, x.mT), TOKENS,
        2 * 5 * 8 * 5),
    'einsum': (lambda x: torch.einsum('bnc,bmc->bnm', x, x), TOKENS,
               2 * 5 * 5 * 8),
    'attention': (
        lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None]),
        TOKENS, 2 * (2 * 5 * 5 * 8)),
    'lstm': (lambda x: nn.LSTM(8, 3)(x)[0], TOKENS,
             2 * 5 * 4 * 3 * (8 + 3)),
    'lstm cell': (lambda x: nn.LSTMCell(8, 3)(x[0])[0], TOKENS,
                  5 * 4 * 3 * (8 + 3)),
    # q, k, v and out projections, then both products of attention
    'fused attention': (
        lambda x: nn.MultiheadAttention(8, 2).eval()(x, x, x)[0], TOKENS,
        2 * 5 * 8 * 8 * 4 + 2 * (5 * 2 * 2 * 8)),
    'elementwise': (lambda x: (x * x).sum(-1), TOKENS, 0),
}  # fmt: skip


@pytest.mark.parametrize('name', FUNCTIONS)
def test_every_kind_of_product_is_counted(name):
    function, x, expected = FUNCTIONS[name]
    report = counted(function, x)
    assert report.total == report.none == expected
    assert report.num_batches == 1


@pytest.mark.parametrize('name', TINY_MODELS)
def test_total_is_that_of_the_flop_counter(name):
    model, batches = tiny_model(name), tiny_batches(name)
    prepared(model, batches[0])
    report = trace_products(model, batches, forward=forward)
    with quantizing(model), torch.no_grad():
        counter = FlopCounterMode(display=False)
        with counter:
            model(batches[0])
    assert report.total == counter.get_total_flops() / 2
    assert report.unreached == []
    # relative positions have float tables; nothing else is float
    tables = {p.function for p in report.products if p.both < p.total}
    assert tables == ({'einsum'} if name == 'relative' else set())
    assert (report.share == 1) == (name != 'relative')


def test_modules_are_counted_apart():
    model, x = tiny_model('conv'), tiny_batches('conv')[0]
    prepared(model, x)
    expected = {}

    def by_hand(name):
        def hook(module, _, out):
            inputs = module.weight[0].numel()
            expected[name] = out.numel() * inputs

        return hook

    handles = [
        module.register_forward_hook(by_hand(name))
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    ]
    report = trace_products(model, [x], forward=forward)
    for handle in handles:
        handle.remove()
    assert {p.module: p.both for p in report.products} == expected
    assert {p.function for p in report.products} == {'conv2d', 'linear'}
    assert {p.calls for p in report.products} == {1}


KEEP = {
    'nothing': lambda x: x,
    'reshape': lambda x: x.transpose(1, 2).reshape(2, 5, 4),
    'view': lambda x: x.view(2, 5, 4),
    'permute': lambda x: x.permute(0, 2, 1).contiguous(),
    'split': lambda x: x.split(2, dim=-1)[0],
    'chunk': lambda x: x.chunk(2, dim=-1)[1],
    'unbind': lambda x: x.unbind(0)[0],
    'expand': lambda x: x[:1].expand(2, -1, -1),
    'index': lambda x: x[:, torch.tensor([0, 2])],
    'gather': lambda x: x.gather(1, torch.zeros(2, 3, 5, dtype=torch.long)),
    'cat': lambda x: torch.cat([x, x], dim=1),
    'stack': lambda x: torch.stack([x, x]),
    'roll': lambda x: x.roll(1, 1),
    'flip': lambda x: x.flip(1),
    'pad': lambda x: F.pad(x, (1, 1)),
    'pad circular': lambda x: F.pad(x, (1, 1), mode='circular'),
    'pad reflect': lambda x: F.pad(x, (1, 1), mode='reflect'),
    'im2col': lambda x: F.unfold(x[:, None], 2),
    'mask with zeros': lambda x: x.masked_fill(x > 0, 0.0),
    'same type': lambda x: x.to(torch.float32),
    'clone': lambda x: x.detach().clone(),
}


DROP = {
    'scale': lambda x: x * 0.5,
    'pad with ones': lambda x: F.pad(x, (1, 1), value=1.0),
    'cat with another': lambda x: torch.cat([x, torch.ones_like(x)]),
    'mask with ones': lambda x: x.masked_fill(x > 0, 1.0),
    'in place': lambda x: x.add_(1),
    'in place through a view': lambda x: (x[0].mul_(2), x)[1],
    'view of what is written': lambda x: (x[0], x.exp_())[0],
    'mean': lambda x: x.mean(dim=1),
    'other type': lambda x: x.double().float(),
}


def into(first, second):
    """Multiply the first by the second, whatever their shapes."""
    first, second = first.flatten(), second.flatten()
    size = min(len(first), len(second))
    return torch.dot(first[:size], second[:size])


@pytest.mark.parametrize('name', [*KEEP, *DROP])
def test_moved_values_stay_quantized_and_computed_ones_do_not(name):
    model = Multiplies((KEEP | DROP)[name], into)
    report = trace_products(model, [torch.rand(2, 4, 5)], forward=forward)
    assert report.total > 0
    counts = (report.both, report.one, report.none)
    where = 0 if name in KEEP else 1
    assert counts[where] == report.total


def test_quantizers_that_are_off_mark_nothing():
    model = Multiplies(KEEP['nothing'], into)
    model.first = AffineQuantizer(QuantSpec())  # never calibrated
    report = trace_products(model, [torch.rand(4)], forward=forward)
    assert (report.both, report.one, report.none) == (0, 4, 0)
    assert not model.second.enabled


def test_dead_tensors_leave_no_marks_behind():
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.quantizer = quantizer()

        def forward(self, x):
            total = x.new_zeros(())
            for _ in range(200):
                self.quantizer(x.clone())
                # may take the memory that the last line gave back
                total = total + into(x + 1, x + 2)
            return total

    report = trace_products(Loop(), [torch.rand(64)], forward=forward)
    assert report.none == report.total == 200 * 64


class ReadsWeight(nn.Module):
    """As BEiT: multiplies by a layer's weight without calling the layer."""

    def __init__(self, change=lambda weight: weight):
        super().__init__()
        self.stem = nn.Linear(6, 6)
        self.inner = nn.Module()
        self.inner.qkv = nn.Linear(6, 4)
        self.inner.forward = self.project
        self.change = change

    def project(self, x):
        return F.linear(x, self.change(self.inner.qkv.weight))

    def forward(self, x):
        return self.inner(self.stem(x))


def test_weight_read_past_its_layer_is_found():
    model = ReadsWeight().eval()
    prepare(model, QConfig.from_dict({}))
    assert read_past(model, torch.randn(2, 6), forward=forward) == {
        'inner.qkv': 'inner'
    }


@pytest.mark.parametrize('change', [lambda w: w, lambda w: w * 2])
def test_layer_that_is_read_stays_float(change):
    model, x = ReadsWeight(change), torch.randn(3, 6)
    before = model(x)
    _, found = prepared(model, x)
    assert list(found.left_float) == ['inner.qkv']
    assert 'inner reads its weight' in found.left_float['inner.qkv']
    assert not model.inner.qkv.weight_quantizer.calibrated
    report = trace_products(model, [x], forward=forward)
    assert report.read_by == {'inner.qkv': 'inner'}
    assert (report.both, report.one, report.none) == (108, 0, 72)
    [product] = report.of_module('inner')
    assert product.function == 'linear'
    assert 'inner.qkv' in product.reason
    torch.testing.assert_close(model(x), before)


class Routed(nn.Module):
    """Runs its branch where the input says so."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.branch = nn.Linear(4, 4)

    def forward(self, x):
        y = self.stem(x)
        return self.branch(y) if bool(x[0, 0] > 0) else y


def test_further_batches_reach_further_branches():
    off, on = -torch.ones(2, 4), torch.ones(2, 4)
    model = Routed().eval()
    prepare(model, QConfig.from_dict({}))
    found = calibrate(model, [off, off, on, on], forward=forward)
    assert found.covering == [0, 2]
    report = trace_products(
        model, [[off, off, on, on][i] for i in found.covering], forward=forward
    )
    assert report.num_batches == 2
    assert report.unreached == []
    assert report.total == 2 * 32 + 32
    report = trace_products(model, [on, off], forward=forward)
    assert report.num_batches == 1
    report = trace_products(model, [off] * 9, forward=forward, max_batches=3)
    assert report.num_batches == 3
    assert report.unreached == ['branch']
    with pytest.raises(ValueError, match='no batch to trace'):
        trace_products(model, [], forward=forward)


@pytest.mark.parametrize('fails', [False, True])
def test_a_trace_leaves_no_trace(fails):
    model, x = tiny_model('transformer'), tiny_batches('transformer')[0]
    prepared(model, x)
    model.layers[0].train()
    modes = [m.training for m in model.modules()]
    hooks = (
        len(torch_hooks._global_forward_hooks),
        len(torch_hooks._global_forward_pre_hooks),
    )
    state = torch.get_rng_state()

    def run(model, batch):
        torch.rand(3)
        model(batch)
        if fails:
            raise KeyError('lost')

    if fails:
        with pytest.raises(KeyError, match='lost'):
            trace_products(model, [x], forward=run)
    else:
        trace_products(model, [x], forward=run)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == modes
    assert hooks == (
        len(torch_hooks._global_forward_hooks),
        len(torch_hooks._global_forward_pre_hooks),
    )
    assert not any('quantized_weight' in vars(m) for m in model.modules())
    assert torch.backends.mha.get_fastpath_enabled()


def test_frozen_weights_and_learned_roundings_count_as_quantized():
    from taskptq.reconstruction import freeze

    model, x = tiny_model('conv'), tiny_batches('conv')[0]
    prepared(model, x)
    model.stem.start_rounding()
    assert trace_products(model, [x], forward=forward).share == 1
    model.stem.finish_rounding()
    assert trace_products(model, [x], forward=forward).share == 1
    freeze(model)
    assert trace_products(model, [x], forward=forward).share == 1


def made():
    model, x = ReadsWeight(), torch.randn(3, 6)
    _, found = prepared(model, x)
    report = trace_products(model, [x], forward=forward)
    report.left_float = found.left_float
    return report
