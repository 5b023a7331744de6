"""Joint moments of a layer's inputs in both models."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from taskptq.core import quantizing
from taskptq.core.code_grid import UniformCodes
from taskptq.prepare.blocks import Unit
from taskptq.reconstruction.rounding import moments as module_under_test
from taskptq.reconstruction.rounding.column_solver import ColumnSolver
from taskptq.reconstruction.rounding.moments import PairedMoments, collect


class Calls:
    """Runs a unit on its inputs, which differ between the two models."""

    def __init__(self, module, inputs):
        self.module, self.inputs, self.num_runs = module, inputs, 0

    def calls(self):
        return ((0, batch) for batch in range(len(self.inputs['quant'])))

    def run(self, stream, call, batch):
        assert call == 0
        self.num_runs += 1
        return self.module(self.inputs[stream][batch])


@pytest.fixture
def streams():
    exact = [torch.randn(40, 6) + 1 for _ in range(2)]
    return {'float': exact, 'quant': [x + torch.randn(40, 6) for x in exact]}


def by_hand(x, y, *, centred):
    mean, float_mean = x.mean(dim=0), y.mean(dim=0)
    if centred:
        x, y = x - mean, y - float_mean
    return {
        'hessian': x.T @ x / len(x),
        'cross': y.T @ x / len(x),
        'mean': mean,
        'float_mean': float_mean,
    }


def check(found, expected):
    for name, value in expected.items():
        got = getattr(found, name)[0]
        torch.testing.assert_close(got.float(), value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('centred', [True, False])
def test_moments_of_pairs(streams, centred):
    sums = PairedMoments(nn.Linear(6, 2))
    for x, y in zip(streams['quant'], streams['float'], strict=True):
        sums.add(x, y)
    x, y = (torch.cat(streams[name]) for name in ('quant', 'float'))
    check(sums.moments(centred=centred), by_hand(x, y, centred=centred))


def test_constant_inputs_have_no_moments():
    # All of a weight can be 0, so that a norm gives its bias alone.
    sums = PairedMoments(nn.Linear(6, 2))
    torch.manual_seed(0)
    for _ in range(3):
        x = 0.1 * torch.arange(6.0).expand(7, 6).clone()
        sums.add(x, torch.randn(7, 6))
    found = sums.moments(centred=True)
    assert not found.hessian.any()
    assert not found.cross.any()
    solver = ColumnSolver(found.hessian, damping=0.1)
    codes = solver.codes(
        torch.tensor([[[0.4, 1.6, -2.6, 0.0, 3.0, -0.1]]]),
        grid=UniformCodes(
            scale=torch.ones(1, 1),
            zero_point=torch.zeros(1, 1),
            bounds=(-8, 7),
        ),
    )
    assert codes.flatten().tolist() == [0, 2, -3, 0, 3, 0]


def test_large_maps_are_thinned(monkeypatch):
    monkeypatch.setattr(module_under_test, 'MAX_POSITIONS', 4)
    sums = PairedMoments(nn.Conv2d(3, 2, 3, padding=1))
    x, y = torch.randn(2, 2, 3, 6, 6)
    sums.add(x, y)
    # Every third position of the 6 x 6 outputs, along both axes.
    windows = [
        F.unfold(part, 3, padding=1).unflatten(2, (6, 6))[:, :, ::3, ::3]
        for part in (x, y)
    ]
    pair = [part.transpose(0, 1).flatten(1).T for part in windows]
    assert sums.count == 8
    check(sums.moments(centred=False), by_hand(*pair, centred=False))


@pytest.fixture
def unit(quantized, streams):
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
    quantized(model, streams['float'], bits=3)
    return Unit('pair', model)


def test_a_layer_sees_both_models(unit, streams):
    second = unit.module[2]
    found = collect(second, unit, Calls(unit.module, streams))
    model = copy.deepcopy(unit.module)
    with torch.no_grad():
        y = torch.cat([model[:2](x) for x in streams['float']])
        with quantizing(model):
            x = [model[:2](x) for x in streams['quant']]
            x = model[2].input_quantizer(torch.cat(x))
    check(found['weight'].moments(centred=True), by_hand(x, y, centred=True))


def test_the_unit_runs_only_as_far_as_needed(unit, streams):
    ended = []
    unit.module.append(nn.Identity())
    unit.module[3].register_forward_hook(lambda *_: ended.append(1))
    data = Calls(unit.module, streams)
    collect(unit.module[0], unit, data)
    # Once to its end, to see how many inputs come.
    assert (data.num_runs, len(ended)) == (4, 1)


def test_pairs_that_do_not_fit_stand_for_both(unit, streams):
    streams['float'] = [x[:30] for x in streams['float']]
    found = collect(unit.module[0], unit, Calls(unit.module, streams))
    moments = found['weight'].moments(centred=False)
    assert torch.equal(moments.hessian, moments.cross)
    assert torch.equal(moments.mean, moments.float_mean)


def test_a_layer_that_never_runs_has_no_moments(unit, streams):
    idle = copy.deepcopy(unit.module[0])
    assert collect(idle, unit, Calls(unit.module, streams)) == {}


@pytest.mark.parametrize('layer', [nn.Linear(6, 2), nn.Conv2d(6, 2, 1)])
def test_weighted_moments_are_those_of_repeated_inputs(layer):
    shape = (40, 6) if isinstance(layer, nn.Linear) else (2, 6, 4, 5)
    x, y = torch.randn(2, *shape)
    counts = torch.randint(1, 4, (40,))
    weights = counts if len(shape) == 2 else counts.reshape(2, 4, 5)
    sums = PairedMoments(layer)
    sums.add(x, y, weights=weights)
    if len(shape) == 4:
        x, y = (part.movedim(1, -1).reshape(40, 6) for part in (x, y))
    rows = [part.repeat_interleave(counts, dim=0) for part in (x, y)]
    check(sums.moments(centred=True), by_hand(*rows, centred=True))


def test_weights_of_another_shape_count_one():
    x, y = torch.randn(2, 40, 6)
    sums, plain = PairedMoments(nn.Linear(6, 2)), PairedMoments(None)
    sums.add(x, y, weights=torch.rand(7))
    plain.add(x, y)
    check(
        sums.moments(centred=False),
        {
            k: v[0].float()
            for k, v in vars(plain.moments(centred=False)).items()
        },
    )
