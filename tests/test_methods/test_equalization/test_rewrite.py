"""Equalized channels: the float model stays, ranges come closer."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from taskptq.methods.equalization import edits
from taskptq.methods.equalization import rewrite as equalization
from taskptq.methods.equalization.rewrite import (
    CrossLayerEqualization,
    equalizing_scales,
)

from ..conftest import stats_of  # isort: skip


def mixed_model(seed=0):
    """Convolutions, also grouped, batch norm and linears of uneven scale."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, padding=1, groups=4),
        nn.ReLU(),
        nn.Conv2d(8, 6, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 8),
        nn.ReLU(inplace=True),
        nn.Linear(8, 8),
        nn.ReLU(),
        nn.Linear(8, 2),
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
            if parameter.dim() > 1:  # rows of very different size
                rows = torch.randn(len(parameter), generator=generator).exp()
                parameter.mul_(rows.reshape(-1, *[1] * (parameter.dim() - 1)))
        model[1].running_var.uniform_(0.1, 4.0, generator=generator)
    return model


def images(seed=1, number=4):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(number, 3, 8, 8, generator=generator),)


def test_layer_norm():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(3, 8),
        nn.LayerNorm(8),
        nn.Linear(8, 8),
        nn.GELU(),
        nn.Linear(8, 2),
    ).eval()
    nn.init.normal_(model[1].weight, std=3)
    nn.init.normal_(model[1].bias)
    x = torch.randn(5, 4, 3)
    expected = model(x).detach()
    report = CrossLayerEqualization()(model, stats_of((x,)))
    assert [(entry.name, entry.status) for entry in report.entries] == [
        ('2', 'applied')
    ]
    torch.testing.assert_close(model(x).detach(), expected)


@pytest.mark.parametrize('alpha', [0.0, 0.5, 1.0])
def test_float_model_stays(alpha):
    model = mixed_model()
    expected = model(*images(seed=7)).detach()
    before = copy.deepcopy(model.state_dict())
    report = CrossLayerEqualization(alpha=alpha)(
        model, stats_of(images(1), images(2))
    )
    assert [entry.status for entry in report.entries] == ['applied'] * 4
    assert any(
        not torch.equal(value, before[name])
        for name, value in model.state_dict().items()
    )
    torch.testing.assert_close(
        model(*images(seed=7)).detach(),
        expected,
        rtol=1e-4,
        atol=1e-5 * float(expected.abs().max()),
    )


def test_channels_come_closer():
    report = CrossLayerEqualization(alpha=1.0)(
        mixed_model(), stats_of(images())
    )
    for entry in report.entries:
        assert entry.details['max_to_median_before'] > 1.2
        assert entry.details['max_to_median_after'] == pytest.approx(1)


def test_columns_come_closer_with_alpha_zero():
    model = mixed_model()
    CrossLayerEqualization(alpha=0.0, patterns=['10'])(
        model, stats_of(images())
    )
    live = model[:10](*images()).amax(dim=0) > 0
    columns = model[10].weight.detach().abs().amax(dim=0)[live]
    assert len(columns) > 2
    torch.testing.assert_close(columns, columns[:1].expand(len(columns)))


def test_patterns_choose():
    model = mixed_model()
    before = model[5].weight.clone()
    report = CrossLayerEqualization(patterns=['10'])(model, stats_of(images()))
    assert [entry.name for entry in report.entries] == ['10']
    assert torch.equal(model[5].weight, before)
    with pytest.raises(ValueError, match="pattern 'neck' matches no layer"):
        CrossLayerEqualization(patterns=['neck'])(model, stats_of(images()))


def test_ranges_of_all_batches_count():
    other = (3 * images(3)[0],)
    first, both, turned = [
        [
            entry.details['scales']
            for entry in CrossLayerEqualization()(mixed_model(), stats).entries
        ]
        for stats in (
            stats_of(images()),
            stats_of(images(), other),
            stats_of(other, images()),
        )
    ]
    assert both != first
    assert both == turned


def test_ranks_edit_alike(monkeypatch):
    model = mixed_model()
    other = iter(
        [
            [('1', '3'), ('3', '5')],  # what the other rank found
            {'3': torch.full((8,), 50.0)},  # its peaks
            {'5': 0.5, 'head': 0.0},  # its errors, at first and at last
            {'3': 0.0},
        ]
    )
    for module in (equalization, edits):
        monkeypatch.setattr(module, 'gather', lambda own: [own, next(other)])
    report = CrossLayerEqualization(alpha=1.0)(model, stats_of(images()))
    found = {entry.name: entry for entry in report.entries}
    assert list(found) == ['3', '5']
    assert found['3'].status == 'applied'
    assert found['3'].details['max_to_median_after'] == 1
    assert found['3'].details['max_to_median_before'] == 1
    assert found['5'].status == 'undone'
    assert 'the output of 5 changed by 0.5' in found['5'].reason


def test_dead_channels_stay():
    scales = equalizing_scales(
        torch.tensor([0.0, 1.0, 4.0, 4.0]),
        torch.tensor([1.0, 1, 1, 0]),
        alpha=0.5,
        limit=100,
    )
    assert scales.tolist() == [1, 1, 2, 1]


def test_limit():
    scales = equalizing_scales(
        torch.tensor([1e-6, 1.0, 1e6]), torch.ones(3), alpha=1.0, limit=10
    )
    assert scales.tolist() == [0.1, 1, 10]


class SecretReader(nn.Module):
    """Reads channels without any torch function seeing it."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.third = nn.Linear(1, 1)
        self.before, self.after = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        fine = self.after(self.before(x).relu())
        y = self.first(x)
        with torch._C.DisableTorchFunction():
            total = y.sum(dim=-1, keepdim=True)
        return fine + self.second(y) + self.third(total)


def test_what_cannot_be_seen_is_undone():
    torch.manual_seed(0)
    model = SecretReader().eval()
    x = torch.randn(8, 4)
    expected, before = model(x), copy.deepcopy(model.state_dict())
    report = CrossLayerEqualization()(model, stats_of((x,)))
    assert {entry.status for entry in report.entries} == {'undone'}
    assert 'third' in report.entries[0].reason
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
    assert all(
        torch.equal(value, before[name])
        for name, value in model.state_dict().items()
    )


def test_bad_arguments():
    with pytest.raises(ValueError, match=r'alpha=1\.5: give a number from 0'):
        CrossLayerEqualization(alpha=1.5)
    with pytest.raises(ValueError, match=r'limit=0\.5: give a number from 1'):
        CrossLayerEqualization(limit=0.5)


def test_bad_data():
    with pytest.raises(ValueError, match='calibration set is empty'):
        CrossLayerEqualization()(mixed_model(), stats_of())
    with pytest.raises(ValueError, match='contains NaN or infinity'):
        CrossLayerEqualization()(
            mixed_model(), stats_of((images()[0] * float('nan'),))
        )


@pytest.mark.parametrize('alpha', [0.5, 'search'])
def test_layers_called_by_keyword_or_with_nothing(alpha):
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x):
            return self.second(input=self.first(x).relu())

    head = Head().eval()
    batches = [torch.randn(8, 4), torch.zeros(0, 4)]
    stats = SimpleNamespace(batches=batches, forward=lambda m, x: m(x))
    report = CrossLayerEqualization(alpha=alpha)(head, stats)
    assert report.entries[0].details['giver'] == 'first'
    assert report.entries[0].status != 'undone'
