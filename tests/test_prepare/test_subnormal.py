"""Subnormal weights become zero; nothing else changes."""

import logging

import torch
from torch import nn

from taskptq.prepare import QConfig, prepare
from taskptq.prepare.subnormal import flush_subnormal


def test_only_subnormal_values_become_zero():
    model = nn.Linear(3, 1, bias=False)
    model.weight.data = torch.tensor([[1e-40, -1e-42, 1.2e-38]])
    assert flush_subnormal(model) == 2
    assert model.weight.tolist() == [[0.0, 0.0, torch.tensor(1.2e-38).item()]]
    assert flush_subnormal(model) == 0


def test_half_precision_keeps_its_small_values():
    model = nn.Linear(1, 1, bias=False).half()
    model.weight.data = torch.tensor([[6e-8]], dtype=torch.float16)
    assert flush_subnormal(model) == 0
    assert model.weight.item() > 0


def test_a_user_reads_why_a_weight_changed(caplog):
    model = nn.Linear(2, 1)
    model.weight.data[0, 0] = 1e-40
    with caplog.at_level(logging.INFO, logger='taskptq'):
        flush_subnormal(model)
    assert '1 of 3 weights are subnormal' in caplog.text


def test_prepared_weights_are_not_subnormal_after_folding():
    model = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2))
    model.eval()
    model[0].weight.data[0] = 1e-30
    model[1].weight.data[0] = 1e-9
    x = torch.randn(1, 1, 4, 4)
    before = model(x)
    prepare(model, QConfig.from_dict({}), batch=x)
    assert torch.allclose(model(x), before, atol=1e-6)
    assert model[0].weight.flatten()[0] == 0
    assert model[0].weight.flatten()[1] != 0
