"""What is folded and swapped: by a batch, by structure, by a file."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from norm_checks import W4, check
from torch import Tensor, nn

from taskptq.modules import QuantConv2d
from taskptq.prepare import (
    Decisions,
    prepare,
)
from taskptq.testing import tiny_batches, tiny_model

IMAGE = (2, 3, 10, 10)


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


MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    'no layer': ({'folded': (('nowhere', 'stem_bn'),)}, 'nowhere'),
    'no norm': ({'folded': (('stem', 'nowhere'),)}, 'nowhere'),
    'channels': ({'folded': (('stem', 'layer2.bn1'),)}, r'layer2\.bn1'),
    'class': ({'folded': (('stem_bn', 'stem'),)}, 'stem_bn'),
    'float': ({'left_float': {'nowhere': ''}}, 'nowhere'),
    'float norm': ({'left_float': {'stem_bn': ''}}, 'stem_bn'),
    'kept': ({'kept_norms': {'nowhere': ''}}, 'nowhere'),
    'baked': ({'baked': ('nowhere',)}, 'nowhere'),
    'baked plain': ({'baked': ('stem',)}, "'stem'"),
    'untied': ({'untied': ('nowhere.weight',)}, r'nowhere\.weight'),
    'untied buffer': ({'untied': ('stem_bn.running_var',)}, 'running_var'),
}


@pytest.mark.parametrize('kind', MISFITS)
def test_decisions_of_another_model_change_nothing(kind: str) -> None:
    settings, message = MISFITS[kind]
    model = tiny_model('conv')
    before = [(n, id(m)) for n, m in model.named_modules()]
    values = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        prepare(model, W4, decisions=Decisions(**settings))
    assert before == [(n, id(m)) for n, m in model.named_modules()]
    for key, value in model.state_dict().items():
        assert torch.equal(value, values[key])


def test_exactly_what_was_decided_is_done() -> None:
    model = tiny_model('conv')
    report = prepare(
        model,
        W4,
        decisions=Decisions(
            folded=(('layer1.conv2', 'layer1.bn2'),),
            left_float={'head': 'for a test'},
        ),
    )
    assert report.folded == ['layer1.bn2']
    assert type(model.layer1.bn1) is nn.BatchNorm2d
    assert type(model.head) is nn.Linear
    assert {r.name: r.reason for r in report.rows}['head'] == 'for a test'
