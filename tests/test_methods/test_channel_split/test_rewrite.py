"""Split channels: the output stays, the error falls, the price is told."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from taskptq.methods.channel_split.rewrite import ChannelSplit, copies_for
from taskptq.methods.rewriting.replay import replay, structures
from taskptq.prepare import QConfig

from ..conftest import stats_of  # isort: skip


def test_copies():
    peaks = torch.tensor([8, 1, 3, 0.5])
    assert copies_for(peaks, 3.0).tolist() == [3, 1, 1, 1]
    assert copies_for(torch.tensor([3.0000001]), 1.0).tolist() == [3]
    assert copies_for(torch.tensor([0.0]), 1.0).tolist() == [1]


def outliers(seed=0):
    """32 -> 64 -> 32 with two channels 12 and 6 times as large."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.normal_(generator=generator)
            layer.bias.zero_()
        model[0].weight[3] *= 12
        model[0].weight[17] *= 6
    return model.eval()


def bottleneck(seed=0):
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 8, 3, 2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 4, 1),
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
        model[1].weight[5] *= 12
        model[1].bias[5] *= 12
    return model


def stats_for(*shape, bits=4, **qconfig):
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


def test_error_falls_as_published():
    model, stats = outliers().double(), stats_for(256, 32)
    x = stats.batches[0][0].double()
    stats.batches = [(x,)]
    expected = model(x).detach()
    report = ChannelSplit()(model, stats)
    (entry,) = report.entries
    assert entry.status == 'applied'
    details = entry.details
    assert details['error_after'] < details['error_before'] / 3
    assert 0 < details['extra_channels'] <= 16
    assert model[0].out_features == 64 + details['extra_channels']
    assert details['extra_macs'] == 256 * 64 * details['extra_channels']
    assert report.max_relative_error < 1e-12
    torch.testing.assert_close(
        model(x).detach(), expected, rtol=1e-10, atol=1e-10
    )


def test_through_a_batch_norm_and_replayed():
    model, stats = bottleneck(), stats_for(4, 3, 8, 8)
    (x,) = stats.batches[0]
    expected = model(x).detach()
    report = ChannelSplit()(model, stats)
    entries = {entry.name: entry for entry in report.entries}
    assert entries['3'].status == 'applied'
    assert model[1].num_features > 16
    torch.testing.assert_close(
        model(x).detach(), expected, rtol=1e-4, atol=1e-4
    )
    fresh = bottleneck(seed=5)
    replay(fresh, structures([report.to_dict()]))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), model(x))


def test_budget():
    model, stats = outliers(), stats_for(256, 32)
    (entry,) = ChannelSplit(max_extra=0.01)(model, stats).entries
    assert entry.status == 'unchanged'
    assert model[0].out_features == 64


def test_small_errors_stay():
    for options, reason in (
        ({'least_error': 1.0}, 'its error is below 1'),
        ({'least_gain': 1e6}, 'falls by less than a factor'),
    ):
        model = outliers()
        report = ChannelSplit(**options)(model, stats_for(256, 32))
        assert reason in report.entries[0].reason
        assert report.structure == {}
        assert model[0].out_features == 64


def test_float_readers_and_patterns():
    stats = stats_for(256, 32, keep_float=['2'])
    report = ChannelSplit()(outliers(), stats)
    assert report.entries[0].reason == 'none of its readers is quantized'
    report = ChannelSplit(patterns=['6'])(bottleneck(), stats_for(4, 3, 8, 8))
    assert [entry.name for entry in report.entries] == ['6']
    with pytest.raises(ValueError, match="pattern 'neck' matches no layer"):
        ChannelSplit(patterns=['neck'])(bottleneck(), stats_for(4, 3, 8, 8))
    with pytest.raises(ValueError, match='calibration set is empty'):
        ChannelSplit()(outliers(), stats_of())


def test_depthwise_and_other_functions_are_not_split():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.SiLU(),
        nn.Conv2d(8, 4, 1),
    ).eval()
    report = ChannelSplit(least_error=0)(model, stats_for(1, 3, 8, 8))
    assert report.entries == []


class Hidden(nn.Module):
    """Reads channels without any torch function seeing it."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x):
        y = self.first(x).relu()
        with torch._C.DisableTorchFunction():
            y.data.sub_(y.amax(dim=-1, keepdim=True).clamp(max=1))
        return self.second(y)


def test_what_cannot_be_seen_is_taken_back():
    torch.manual_seed(0)
    model = Hidden().eval()
    with torch.no_grad():
        model.first.weight[3] *= 30
    stats = stats_for(64, 32)
    (x,) = stats.batches[0]
    expected = model(x).detach()
    report = ChannelSplit(least_gain=1, least_error=0)(model, stats)
    assert report.entries
    for entry in report.entries:
        assert entry.status == 'undone'
        assert 'its output changed by' in entry.reason
    assert report.structure == {}
    assert torch.equal(model(x).detach(), expected)
