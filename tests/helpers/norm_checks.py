"""What the tests of folding share: a recipe, norms with statistics."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from taskptq.core import float_only
from taskptq.prepare import QConfig, SwapReport, prepare

W4 = QConfig.from_dict(
    {'weight': {'num_bits': 4}, 'activation': {'num_bits': 4}}
)


def randomised(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.3, 2.0)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return model.eval()


@torch.no_grad()
def check(
    model: nn.Module,
    x: Tensor,
    folded: list[str],
    *,
    tolerance: float = 1e-5,
) -> SwapReport:
    """Prepare on a batch: the folded norms, and the output as it was."""
    randomised(model)
    twin = copy.deepcopy(model)
    before = model(x)
    report = prepare(model, W4, batch=x)
    assert report.folded == folded
    with float_only(model):
        after = model(x)
    assert (after - before).abs().max() <= tolerance * before.abs().max()
    # A model without data gets the same structure from the decisions.
    again = prepare(twin, W4, decisions=report.decisions)
    assert again.folded == folded
    assert again.rows == report.rows
    assert twin.state_dict().keys() == model.state_dict().keys()
    for key, value in twin.state_dict().items():
        assert torch.equal(value, model.state_dict()[key]), key
    return report
