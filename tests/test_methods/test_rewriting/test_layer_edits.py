"""Wrong edits are undone where they are, and nowhere else."""

import copy

import pytest
import torch
from torch import nn

from taskptq.methods.rewriting.layer_edits import (
    LayerEdit,
    apply_layer_edits,
    outcome,
)
from taskptq.methods.rewriting.verified_rewrite import RewriteEntry, RowEdit

from ..conftest import stats_of  # isort: skip


def chain():
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(4, 4) for _ in range(4))).eval()


def plan(giver, reader, name, *, factor=2.0, returned=0.5):
    weight, bias = giver.weight.detach(), giver.bias.detach()
    columns = reader.weight.detach()
    return LayerEdit(
        entry=RewriteEntry(name=name, part='input', status='unchanged'),
        readers={name: reader},
        edits=[
            RowEdit.to(weight, weight * factor),
            RowEdit.to(bias, bias * factor),
            RowEdit.to(columns, columns * returned),
        ],
    )


def test_only_the_wrong_edit_is_undone():
    model = chain()
    x = torch.randn(5, 4)
    expected = model(x).detach()
    before = copy.deepcopy(model.state_dict())
    wrong = plan(model[0], model[1], '1', returned=0.4)
    right = plan(model[2], model[3], '3')
    standing = apply_layer_edits(
        model, [wrong, right], stats_of((x,)), tolerance=1e-5
    )
    assert standing == [right]
    assert wrong.entry.status == 'undone'
    assert 'more than the tolerance of 1e-05' in wrong.entry.reason
    assert right.entry.status == 'applied'
    assert right.entry.max_relative_error <= 1e-5
    torch.testing.assert_close(model(x).detach(), expected)
    for name, value in model.state_dict().items():
        changed = not torch.equal(value, before[name])
        assert changed is name.startswith(('2', '3.weight'))


def test_fallback_takes_its_place():
    model = chain()
    x = torch.randn(5, 4)
    wrong = plan(model[0], model[1], '1', returned=0.4)
    wrong.fallback = plan(model[0], model[1], '1')
    standing = apply_layer_edits(
        model, [wrong], stats_of((x,)), tolerance=1e-5
    )
    assert standing == [wrong.fallback]
    assert outcome(wrong) is wrong.fallback.entry
    assert outcome(wrong).status == 'applied'


def test_inplace_functions_do_not_spoil_the_comparison():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU(True))
    x = torch.randn(5, 4)
    one = plan(model[0], model[1], '1')
    apply_layer_edits(model, [one], stats_of((x,)), tolerance=1e-5)
    assert one.entry.status == 'applied'


class Looking(nn.Module):
    def __init__(self):
        super().__init__()
        self.project = nn.Linear(4, 4)
        self.attn = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        y = self.project(x)
        return self.attn(y, y, y, need_weights=False)[0]


@pytest.mark.parametrize(
    ('returned', 'status'), [(0.5, 'applied'), (1, 'undone')]
)
def test_attentions(returned, status):
    torch.manual_seed(0)
    model = Looking().eval()
    weight, bias = (p.detach() for p in model.project.parameters())
    fused = model.attn.in_proj_weight.detach()
    one = LayerEdit(
        entry=RewriteEntry(name='attn', part='input', status='unchanged'),
        readers={'attn': model.attn},
        edits=[
            RowEdit.to(weight, weight * 2),
            RowEdit.to(bias, bias * 2),
            RowEdit.to(fused, fused * returned),
        ],
    )
    x = torch.randn(2, 3, 4)
    apply_layer_edits(model, [one], stats_of((x,)), tolerance=1e-5)
    assert one.entry.status == status


def test_plans_without_edits_are_ignored():
    one = plan(nn.Linear(4, 4), nn.Linear(4, 4), '1')
    one.edits = []
    assert not apply_layer_edits(chain(), [one], stats_of(), tolerance=1e-5)
    assert one.entry.status == 'unchanged'
