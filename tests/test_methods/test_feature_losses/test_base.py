"""Rows, weights and the port of reconstruction."""

import pytest
import torch

from taskptq.methods.feature_losses import (
    SquaredFeatureLoss,
    rows_of,
    tokens_of,
)
from taskptq.methods.feature_losses.base import weighted_mean
from taskptq.reconstruction.losses import ReconContext

CONTEXT = ReconContext(unit='block', step=0, num_steps=1)


def test_positions_of_a_map_are_rows():
    feature = torch.randn(2, 3, 4, 5)
    rows = rows_of(feature)
    assert rows.shape == (40, 3)
    assert torch.equal(rows[5 + 2], feature[0, :, 1, 2])
    tokens = tokens_of(feature)
    assert torch.equal(tokens.reshape(40, 3), rows)
    assert tokens_of(rows) is rows
    assert rows_of(torch.zeros(2, 7, 3)).shape == (14, 3)


def test_weights_choose_rows():
    values = torch.tensor([[1.0], [3.0], [100.0]])
    weights = torch.tensor([1.0, 3.0, 0.0])
    assert weighted_mean(values, weights).item() == pytest.approx(2.5)
    assert weighted_mean(values, 0 * weights).item() == 0


def test_a_unit_is_the_sum_of_its_outputs():
    loss = SquaredFeatureLoss()
    one, two = torch.ones(2, 3), torch.ones(2, 3, 4, 4)
    mask = torch.ones(2, dtype=torch.bool)
    value = loss(
        {'a': 2 * one, 'b': 3 * two, 'mask': mask},
        {'a': one, 'b': two, 'mask': mask},
        CONTEXT,
    )
    assert value.item() == pytest.approx(1 + 4)
    assert loss(2 * one, one, CONTEXT).item() == pytest.approx(1)


def test_a_unit_without_features_is_refused():
    mask = torch.ones(2, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"SquaredFeatureLoss .* 'block'"):
        SquaredFeatureLoss()(mask, mask, CONTEXT)


def test_an_output_without_rows_costs_nothing():
    quant = torch.zeros(0, 4, requires_grad=True)
    loss = SquaredFeatureLoss()(quant, quant.detach(), CONTEXT)
    loss.backward()
    assert loss.item() == 0
