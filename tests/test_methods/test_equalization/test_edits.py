"""Scales are written to both sides, and taken back together."""

import torch
from torch import nn

from taskptq.methods.equalization.edits import (
    ScalePlan,
    apply_plans,
    column_factors,
    column_peaks,
)
from taskptq.methods.equalization.scale_groups import find_layer_groups
from taskptq.methods.rewriting.verified_rewrite import RewriteEntry

from ..conftest import stats_of  # isort: skip


def plans_of(model, x, scales):
    groups = find_layer_groups(model, lambda: model(x))
    return [
        ScalePlan(
            group=group,
            scales=scales.double(),
            entry=RewriteEntry(name=group.name, part='', status='applied'),
        )
        for group in groups
    ]


def test_a_layer_in_two_groups_gets_both_factors():
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(3))).eval()
    before = model[1].weight.clone()
    x = torch.randn(4, 2)
    expected = model(x).detach()
    scales = torch.tensor([2.0, 4.0])
    plans = plans_of(model, x, scales)
    with torch.no_grad():
        apply_plans(model, plans, stats_of((x,)), tolerance=1e-4)
    assert [plan.entry.status for plan in plans] == ['applied'] * 2
    torch.testing.assert_close(
        model[1].weight.detach(), before * scales / scales[:, None]
    )
    torch.testing.assert_close(model(x).detach(), expected)


def test_columns_of_grouped_convolutions():
    conv = nn.Conv2d(4, 4, 1, groups=2)
    with torch.no_grad():
        conv.weight.copy_(
            torch.tensor([[1.0, 2], [-3, 1], [5, 6], [0, -7]])[..., None, None]
        )
    assert column_peaks(conv).tolist() == [3, 2, 5, 7]
    factors = column_factors(conv, torch.tensor([1.0, 2, 3, 4]))
    assert factors[:, :, 0, 0].tolist() == [[1, 2], [1, 2], [3, 4], [3, 4]]
