"""The report of products: plain forms, shares and counts."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from taskptq.calibration import calibrate
from taskptq.prepare import QConfig, prepare
from taskptq.prepare.products import ProductReport, trace_products
from taskptq.prepare.products_report import percent


def forward(model, batch):
    return model(batch)


def prepared(model, batch, unreached='error', **settings):
    """Prepare and calibrate; returns the swap report as well."""
    model.eval().requires_grad_(False)
    report = prepare(model, QConfig.from_dict({'edge_bits': None} | settings))
    found = calibrate(model, [batch], forward=forward, unreached=unreached)
    return report, found


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


def made():
    model, x = ReadsWeight(), torch.randn(3, 6)
    _, found = prepared(model, x)
    report = trace_products(model, [x], forward=forward)
    report.left_float = found.left_float
    return report


def test_plain_form_is_read_again():
    report = made()
    plain = json.loads(json.dumps(report.to_dict()))
    assert (
        plain['summary']
        == report.summary()
        == (
            '60.0 % of 180 multiply-accumulates run with both operands '
            'quantized (0.0 % one, 40.0 % none)'
        )
    )
    assert ProductReport.from_dict(plain) == report
    assert next(iter(plain)) == 'summary'


@pytest.mark.parametrize(
    ('path', 'value'),
    [
        (('products',), None),
        (('products',), {}),
        (('products', 0), 3),
        (('products', 0, 'both'), -1),
        (('products', 0, 'both'), 2**70),
        (('products', 0, 'calls'), True),
        (('products', 0, 'none'), math.nan),
        (('products', 0, 'reason'), 'x' * 10_000),
        (('products', 0, 'module'), 7),
        (('num_batches',), '1'),
        (('unreached',), 'layer'),
        (('unreached',), [1]),
        (('read_by',), {'a': 1}),
        (('left_float',), [('a', 'b')]),
    ],
)
def test_plain_form_of_a_stranger_is_checked(path, value):
    plain = made().to_dict()
    target = plain
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    with pytest.raises(ValueError, match=str(path[0])):
        ProductReport.from_dict(plain)
    with pytest.raises(ValueError, match='products'):
        ProductReport.from_dict(None)


@pytest.mark.parametrize(
    ('part', 'total', 'text'),
    [
        (1, 1, '100.0 %'),
        (0, 1, '0.0 %'),
        (1, 10**6, '<0.1 %'),
        (10**6 - 1, 10**6, '99.9 %'),
        (1, 3, '33.3 %'),
        (2**61 - 1, 2**61, '99.9 %'),
    ],
)
def test_percent_claims_no_whole_that_is_none(part, total, text):
    assert percent(part, total) == text


def test_model_without_products():
    report = counted(torch.relu, torch.randn(3))
    assert report.total == report.share == 0
    assert 'no matrix product' in report.summary()
