"""Explicit scales: exact, where they pay, and restored from the file."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from taskptq.methods.channel_scale.rewrite import ChannelScale
from taskptq.methods.rewriting.replay import replay, structures
from taskptq.modules.scaled import ScaledConv2d, ScaledLinear
from taskptq.prepare import QConfig
from taskptq.testing import TinyWindowAttention, tiny_model

from ..conftest import stats_of  # isort: skip


def silu_model(seed=0):
    """1x1 convolutions behind SiLU and a concatenation of uneven parts."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
            self.join = nn.Conv2d(8, 6, 3, 2, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(6)
            self.head = nn.Linear(6, 5)

        def forward(self, x):
            one = nn.functional.silu(self.one(x))
            two = nn.functional.silu(self.two(x))
            y = self.norm(self.join(torch.cat([one, two], dim=1)))
            return self.head(nn.functional.silu(y).mean(dim=(2, 3)))

    generator = torch.Generator().manual_seed(seed)
    model = Net().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
        for parameter in model.two.parameters():
            parameter.mul_(30)
        model.join.weight[:, 4:] /= 30
    return model


def stats_for(shape=(2, 3, 8, 8), bits=4, **qconfig):
    generator = torch.Generator().manual_seed(1)
    stats = stats_of((torch.randn(shape, generator=generator),))
    settings = {
        'weight': {'num_bits': bits},
        'activation': {'num_bits': bits},
        'edge_bits': None,
        **qconfig,
    }
    return SimpleNamespace(
        batches=stats.batches,
        forward=stats.forward,
        qconfig=QConfig.from_dict(settings),
    )


def rewritten(model, stats, **options):
    (x,) = stats.batches[0]
    expected = model(x).detach()
    report = ChannelScale(**options)(model, stats)
    torch.testing.assert_close(
        model(x).detach(), expected, rtol=1e-4, atol=1e-4
    )
    return report, {entry.name: entry for entry in report.entries}


def test_scales_what_nothing_can_fold():
    model = silu_model()
    report, entries = rewritten(model, stats_for())
    entry = entries['join']
    assert entry.status == 'applied'
    details = entry.details
    assert details['error_after'] < details['error_before'] / 10
    assert details['scales'][1] / details['scales'][0] > 5
    assert details['operations_per_element'] == 1
    assert details['operations_per_mac'] == pytest.approx(4 / (6 * 9))
    assert isinstance(model.join, ScaledConv2d)
    assert 'join' in report.structure['layers']


def test_float64_is_exact():
    model = silu_model().double()
    stats = stats_for()
    x = stats.batches[0][0].double()
    stats.batches = [(x,)]
    expected = model(x).detach()
    report = ChannelScale()(model, stats)
    assert report.count('applied')
    assert report.max_relative_error < 1e-12
    torch.testing.assert_close(model(x).detach(), expected, rtol=1e-10, atol=0)


def test_small_errors_and_small_gains_stay():
    for options, reason in (
        ({'least_error': 1.0}, 'its error is below 1'),
        ({'least_gain': 1e6}, 'falls by less than a factor'),
    ):
        model = silu_model()
        report, entries = rewritten(model, stats_for(), **options)
        assert {entry.status for entry in entries.values()} == {'unchanged'}
        assert reason in entries['join'].reason
        assert report.structure == {}
        assert type(model.join) is nn.Conv2d


def test_wrong_edits_give_the_layer_back(monkeypatch):
    from taskptq.methods.channel_scale import rewrite

    model = silu_model()
    before = model.join.weight.clone()
    made = rewrite._edits
    monkeypatch.setattr(rewrite, '_edits', lambda *args: made(*args)[:1])
    report, entries = rewritten(model, stats_for())
    assert entries['join'].status == 'undone'
    assert report.structure == {}
    assert type(model.join) is nn.Conv2d
    assert torch.equal(model.join.weight, before)


class PostNorm(nn.Module):
    """A norm of off-center channels that a layer and a residual read."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Linear(3, 8), nn.LayerNorm(8)
        self.fc1, self.fc2 = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        x = self.norm(self.embed(x))
        return x + self.fc2(torch.relu(self.fc1(x)))


def test_shifts_where_the_norm_is_read_by_others():
    torch.manual_seed(0)
    model = PostNorm().eval().double()
    with torch.no_grad():
        model.norm.bias.normal_(std=5)
    stats = stats_for((64, 3))
    x = stats.batches[0][0].double()
    stats.batches = [(x,)]
    expected = model(x).detach()
    plain = ChannelScale(shift=False)(copy.deepcopy(model), stats)
    report = ChannelScale()(model, stats)
    assert 'fc1' in report.structure['shifted']
    (entry,) = (e for e in report.entries if e.name == 'fc1')
    assert entry.details['shifted']
    assert entry.details['operations_per_element'] == 2
    (other,) = (e for e in plain.entries if e.name == 'fc1')
    assert entry.details['error_after'] < other.details['error_after'] / 2
    torch.testing.assert_close(model(x).detach(), expected, rtol=0, atol=1e-12)
    fresh = PostNorm().double()
    replay(fresh, structures([report.to_dict()]))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), model(x))


def test_padded_inputs_are_never_shifted():
    model = silu_model()
    model.join.bias = nn.Parameter(torch.randn(6))
    _, entries = rewritten(model, stats_for())
    assert not entries['join'].details['shifted']
    with pytest.raises(ValueError, match="'join' pads zeros"):
        ChannelScale.replay(
            silu_model(), {'layers': ['join'], 'shifted': ['join']}
        )


def test_patterns_and_float_layers():
    _, entries = rewritten(silu_model(), stats_for(), patterns=['head'])
    assert list(entries) == ['head']
    _, entries = rewritten(silu_model(), stats_for(keep_float=['join']))
    assert 'join' not in entries
    with pytest.raises(ValueError, match="pattern 'neck' matches no layer"):
        ChannelScale(patterns=['neck'])(silu_model(), stats_for())


def test_projections_of_a_common_input_stay():
    model = tiny_model('two-way')
    report = ChannelScale(least_gain=1, least_error=0)(
        model, stats_for((2, 3, 16, 16))
    )
    names = {entry.name for entry in report.entries}
    assert not any('self_attn.' in name for name in names)
    assert 'head' in names


def test_attention_projections_of_their_own_input():
    model = nn.ModuleDict(
        {'attn': TinyWindowAttention(16, num_heads=2, window_size=(4, 4))}
    ).eval()
    x = torch.randn(2, 16, 16)
    x[..., 0] *= 40
    with torch.no_grad():
        model['attn'].qkv.weight[:, 0] /= 40
    stats = stats_for()
    stats.batches = [(x,)]
    stats.forward = lambda m, batch: m['attn'](*batch)
    report = ChannelScale()(model, stats)
    applied = [e.name for e in report.entries if e.status == 'applied']
    assert 'attn.qkv' in applied
    assert isinstance(model['attn'].qkv, ScaledLinear)


def test_replayed():
    model = silu_model()
    report, _ = rewritten(model, stats_for())
    fresh = silu_model(seed=1)
    replay(fresh, structures([report.to_dict()]))
    fresh.load_state_dict(model.state_dict())
    (x,) = stats_for().batches[0]
    assert torch.equal(fresh(x), model(x))


@pytest.mark.parametrize(
    'layers',
    [None, 3, 'join', ['join', 3], ['neck'], ['norm'], ['join'] * 99],
)
def test_forged_structures_are_refused(layers):
    model = silu_model()
    with pytest.raises(ValueError, match='scaled'):
        ChannelScale.replay(model, {'layers': layers})
    with pytest.raises(ValueError, match='scaled'):
        ChannelScale.replay(model, {'layers': ['head'], 'shifted': layers})
    assert type(model.join) is nn.Conv2d
