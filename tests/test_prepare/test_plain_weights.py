"""Computed and shared weights: stored, copied, or refused by name."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from taskptq.calibration import calibrate
from taskptq.core import float_only
from taskptq.modules import QuantConv2d, QuantLinear
from taskptq.prepare import QConfig, prepare
from taskptq.prepare.plain_weights import (
    bake,
    baked_copy,
    computed_values,
    is_computed,
    is_plain,
)
from taskptq.reconstruction import freeze

SETTINGS = {
    'weight': {'num_bits': 4},
    'activation': {'num_bits': 8},
    'edge_bits': None,
}
W4 = QConfig.from_dict(SETTINGS)


def old_style(name: str) -> Callable[[nn.Module], nn.Module]:
    def apply(module: nn.Module) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            made: nn.Module = getattr(nn.utils, name)(module)
        return made

    return apply


def both_norms(module: nn.Module) -> nn.Module:
    parametrizations.weight_norm(module)
    return parametrizations.spectral_norm(module)


KINDS: dict[str, Callable[[nn.Module], nn.Module]] = {
    'weight_norm hook': old_style('weight_norm'),
    'spectral_norm hook': old_style('spectral_norm'),
    'weight_norm': parametrizations.weight_norm,
    'spectral_norm': parametrizations.spectral_norm,
    'orthogonal': parametrizations.orthogonal,
    'both': both_norms,
    'pruned': lambda m: prune.l1_unstructured(m, 'weight', 0.5),
    'pruned twice': lambda m: prune.l1_unstructured(
        prune.l1_unstructured(m, 'weight', 0.3), 'weight', 0.3
    ),
}


def computed(kind: str, module: nn.Module) -> nn.Module:
    module = KINDS[kind](module)
    for parameter in module.parameters():
        # Away from the values at which it computes nothing.
        with torch.no_grad():
            parameter.mul_(torch.empty_like(parameter).uniform_(0.5, 2))
    return module.eval()


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('layer', ['conv', 'linear'])
@torch.no_grad()
def test_baked_layer_is_the_same_and_plain(kind: str, layer: str) -> None:
    conv = layer == 'conv'
    module = computed(kind, nn.Conv2d(4, 6, 3) if conv else nn.Linear(4, 6))
    x = torch.randn(2, 4, 5, 5) if conv else torch.randn(2, 4)
    assert is_computed(module)
    assert not is_plain(module, 'weight')
    keys = list(module.state_dict())
    before = module(x)
    twin = baked_copy(module)
    assert list(module.state_dict()) == keys
    assert torch.equal(module(x), before)
    bake(module)
    for baked in (twin, module):
        assert type(baked) is (nn.Conv2d if conv else nn.Linear)
        assert is_plain(baked, 'weight')
        assert not is_computed(baked)
        assert set(baked.state_dict()) == {'weight', 'bias'}
        assert torch.equal(baked(x), before)
        assert baked.weight.is_leaf


class Net(nn.Module):
    """Conv, norm and head."""

    def __init__(self, conv: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.stage = nn.Sequential(conv, nn.BatchNorm2d(6), nn.ReLU())
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stage(x).mean(dim=(2, 3)))


@pytest.mark.parametrize('with_batch', [True, False])
@pytest.mark.parametrize('kind', KINDS)
def test_model_is_quantized_folded_and_frozen(
    kind: str, with_batch: bool
) -> None:
    model = Net(
        computed(kind, nn.Conv2d(4, 6, 3)), computed(kind, nn.Linear(6, 3))
    ).eval()
    model.stage[1].running_var.uniform_(0.5, 2)
    x = torch.randn(2, 4, 5, 5)
    with torch.no_grad():
        before = model(x)
    report = prepare(model, W4, batch=x if with_batch else None)
    assert report.folded == ['stage.1']
    assert report.decisions.baked == ('stage.0', 'head')
    with torch.no_grad(), float_only(model):
        torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)
    twin = Net(
        computed(kind, nn.Conv2d(4, 6, 3)), computed(kind, nn.Linear(6, 3))
    ).eval()
    prepare(twin, W4, decisions=report.decisions)
    assert twin.state_dict().keys() == model.state_dict().keys()
    calibrate(model, [x], forward=lambda m, b: m(b))
    freeze(model)
    with torch.no_grad():
        model(x)
    assert isinstance(model.stage[0], QuantConv2d)
    for row in model.stage[0].weight.flatten(1):
        assert row.unique().numel() <= 16


@pytest.mark.parametrize('kind', ['ConvWS2d', 'ConvAWS2d'])
@pytest.mark.parametrize('groups', [1, 2])
def test_standardized_convolution_becomes_a_plain_one(
    kind: str, groups: int
) -> None:
    conv_ws = pytest.importorskip('mmcv.cnn.bricks.conv_ws')
    conv = getattr(conv_ws, kind)(4, 6, 3, groups=groups)
    for buffer in conv.buffers():
        buffer.uniform_(0.5, 2)
    model = Net(conv, nn.Linear(6, 3)).eval()
    model.stage[1].running_var.uniform_(0.5, 2)
    model.stage[1].running_mean.normal_()
    x = torch.randn(2, 4, 5, 5)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        before = model(x)
        report = prepare(model, W4, batch=x)
        assert report.folded == ['stage.1']
        assert report.decisions.baked == ('stage.0',)
        with float_only(model):
            torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)
    assert isinstance(model.stage[0], QuantConv2d)
    assert not isinstance(model.stage[0], type(twin.stage[0]))
    prepare(twin, W4, decisions=report.decisions)
    assert twin.state_dict().keys() == model.state_dict().keys()


def test_standardized_convolution_kept_float_keeps_its_norm() -> None:
    conv_ws = pytest.importorskip('mmcv.cnn.bricks.conv_ws')
    model = Net(conv_ws.ConvAWS2d(4, 6, 3), nn.Linear(6, 3)).eval()
    x = torch.randn(2, 4, 5, 5)
    report = prepare(
        model,
        QConfig.from_dict({**SETTINGS, 'keep_float': ['stage.0']}),
        batch=x,
    )
    assert report.folded == []
    assert type(model.stage[0]) is conv_ws.ConvAWS2d


def test_decisions_without_the_baked_layer_are_refused() -> None:
    model = Net(
        computed('weight_norm', nn.Conv2d(4, 6, 3)), nn.Linear(6, 3)
    ).eval()
    report = prepare(model, W4)
    plain = Net(nn.Conv2d(4, 6, 3), nn.Linear(6, 3)).eval()
    with pytest.raises(ValueError, match=r'stage\.0'):
        prepare(plain, W4, decisions=report.decisions)
    other = Net(
        computed('weight_norm', nn.Conv2d(4, 6, 3)), nn.Linear(6, 3)
    ).eval()
    with pytest.raises(ValueError, match=r'stage\.0'):
        prepare(other, W4, decisions=prepare(plain, W4).decisions)


def test_other_computed_weights_are_refused_by_name() -> None:
    layer = nn.Linear(4, 4)
    model = nn.Sequential(nn.Linear(4, 4), layer).eval()
    value = layer._parameters.pop('weight')
    vars(layer)['weight'] = value.detach() * 2
    before = [type(m) for m in model.modules()]
    for batch in (None, torch.randn(2, 4)):
        with pytest.raises(ValueError, match=r'^1\.weight .*keep_float'):
            prepare(model, W4, batch=batch)
    assert before == [type(m) for m in model.modules()]
    report = prepare(
        model,
        QConfig.from_dict({**SETTINGS, 'keep_float': ['1']}),
        batch=torch.randn(2, 4),
    )
    assert [r.status for r in report.rows] == ['quantized', 'float']


class Tied(nn.Module):
    """Three linears with one weight, and a table that has it, too."""

    def __init__(self, *, table: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(4, 4)
        self.a = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        self.c = nn.Linear(4, 4)
        self.b.weight = self.a.weight
        self.c.weight = self.a.weight
        if table:
            self.table.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.table(torch.zeros((), dtype=torch.long))
        return self.c(self.b(self.a(x).tanh()).tanh())


@pytest.mark.parametrize('with_batch', [True, False])
@pytest.mark.parametrize(
    ('table', 'kept', 'untied'),
    [
        (False, [], ('b.weight', 'c.weight')),
        (True, [], ('a.weight', 'b.weight', 'c.weight')),
        (False, ['a'], ('b.weight', 'c.weight')),
        (False, ['b'], ('a.weight', 'c.weight')),
        (False, ['b', 'c'], ('a.weight',)),
    ],
)
def test_each_quantized_layer_gets_its_own_weight(
    table: bool, kept: list[str], untied: tuple[str, ...], with_batch: bool
) -> None:
    model = Tied(table=table).eval()
    twin = copy.deepcopy(model)
    x = torch.randn(8, 4)
    shared = model.a.weight.detach().clone()
    qconfig = QConfig.from_dict(
        {
            **SETTINGS,
            'keep_float': kept,
            'overrides': []
            if 'c' in kept
            else [{'pattern': 'c', 'weight': {'num_bits': 2}}],
        }
    )
    with torch.no_grad():
        before = model(x)
    report = prepare(model, qconfig, batch=x if with_batch else None)
    assert report.decisions.untied == untied
    with torch.no_grad(), float_only(model):
        assert torch.equal(model(x), before)
    prepare(twin, qconfig, decisions=report.decisions)
    assert len({id(p) for p in twin.parameters()}) == len(
        {id(p) for p in model.parameters()}
    )
    calibrate(model, [x], forward=lambda m, b: m(b))
    freeze(model)
    for name in 'abc':
        layer = getattr(model, name)
        if name in kept:
            assert torch.equal(layer.weight, shared)
            continue
        levels = 4 if name == 'c' and 'c' not in kept else 16
        assert isinstance(layer, QuantLinear)
        for row in layer.weight:
            assert row.unique().numel() <= levels
    assert torch.equal(model.table.weight, shared) == table


def test_one_module_under_two_names_stays_one() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    model.append(model[0])
    report = prepare(model.eval(), W4, batch=torch.randn(2, 4))
    assert report.decisions.untied == ()
    assert model[0] is model[2]


def test_values_are_those_of_eval_mode() -> None:
    module = parametrizations.spectral_norm(nn.Linear(4, 4)).train()
    u = module.parametrizations.weight[0]._u.clone()
    values = computed_values(module)
    assert torch.equal(module.parametrizations.weight[0]._u, u)
    assert module.training
    assert torch.equal(values['weight'], module.eval().weight)
    assert parametrize.is_parametrized(module)
