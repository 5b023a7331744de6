import json

import pytest
import torch
from torch import nn

from taskptq.methods.sparsity.prunable import find_prunable
from taskptq.methods.sparsity.report import LayerRow, SparsityReport
from taskptq.prepare import QConfig, prepare
from taskptq.prepare.sparsity import SparsityConfig


@pytest.fixture
def one():
    model = nn.Sequential(nn.Linear(2, 2)).eval()
    model[0].weight.data = torch.tensor([[3.0, 4.0], [0.0, 12.0]])
    prepare(model, QConfig.from_dict({'activation': False}))
    (found,), _ = find_prunable(model, SparsityConfig(rate=0.5))
    return found


@pytest.mark.parametrize(
    ('mask', 'error', 'limit'),
    [
        ([[False, True], [False, True]], 9 / 169, 'cut'),
        ([[True, True], [True, True]], 0.0, 'dense'),
        ([[False, False], [False, False]], 1.0, 'empty'),
    ],
)
def test_a_row_says_what_a_mask_costs(one, mask, error, limit):
    row = LayerRow.of(one, torch.tensor(mask))
    assert row.error == pytest.approx(error)
    assert row.limit == limit
    assert row.name == '0.weight'


def test_the_report_is_plain(one):
    mask = torch.tensor([[False, True], [True, True]])
    report = SparsityReport(
        config={'rate': 0.25},
        layers=[LayerRow.of(one, mask)],
        dense={'stem.weight': 'first or last layer'},
    )
    plain = json.loads(json.dumps(report.to_dict()))
    assert plain['rate'] == plain['layers'][0]['rate'] == 0.25
    assert plain['sentence'].startswith('1 of 4 prunable weights are 0 (25.')
    assert 'learned' not in plain
