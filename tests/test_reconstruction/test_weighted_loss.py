"""The unit's loss with weights of positions."""

import pytest
import torch

from taskptq.reconstruction import MSEReconLoss
from taskptq.reconstruction.losses import ReconContext
from taskptq.reconstruction.position_weights import PositionWeights
from taskptq.reconstruction.weighted_loss import PositionWeightedLoss


@pytest.fixture
def weights():
    """Of the images of two batches, two and one."""
    found = PositionWeights()
    for batch, length in enumerate((2, 1)):
        found.of_units['unit:0', batch][0] = torch.rand(length, 4, 5)
        found.of_units['unit:1', batch][0] = torch.rand(length, 7)
    return found


def context(*image_ids):
    return ReconContext(unit='unit', step=0, num_steps=1, image_ids=image_ids)


def repeated(quant, exact, weights):
    noise = ((quant - exact).square() * weights).mean()
    return noise / (exact.square() * weights).mean()


def test_outputs_weigh_by_image_and_position(weights):
    loss = PositionWeightedLoss(weights, [2, 1])
    quant = {'0': torch.randn(2, 3, 4, 5), '1': torch.randn(2, 7, 6)}
    exact = {name: torch.randn_like(value) for name, value in quant.items()}
    maps = [
        torch.stack(
            [weights.of_units[key, 1][0][0], weights.of_units[key, 0][0][1]]
        )
        for key in ('unit:0', 'unit:1')
    ]
    expected = repeated(quant['0'], exact['0'], maps[0][:, None])
    expected = expected + repeated(quant['1'], exact['1'], maps[1][..., None])
    torch.testing.assert_close(loss(quant, exact, context(2, 1)), expected)


@pytest.mark.parametrize('image_ids', [(), (0,), (0, 1)])
def test_without_weights_it_is_the_mean_squared_error(weights, image_ids):
    loss = PositionWeightedLoss(weights, [2, 1])
    quant, exact = torch.randn(2, 2, 3, 6, 6)
    here = context(*image_ids)
    expected = MSEReconLoss()(quant, exact, here)
    torch.testing.assert_close(loss(quant, exact, here), expected)


def test_outputs_of_several_calls_are_not_weighted(weights):
    weights.of_units['unit:0', 0][1] = torch.rand(2, 4, 5)
    loss = PositionWeightedLoss(weights, [2, 1])
    quant, exact = torch.randn(2, 2, 3, 4, 5)
    expected = MSEReconLoss()(quant, exact, context(0, 1))
    torch.testing.assert_close(loss(quant, exact, context(0, 1)), expected)


def test_a_call_without_rows_costs_nothing(weights):
    quant = torch.zeros(0, 4, requires_grad=True)
    loss = PositionWeightedLoss(weights, [2, 1])
    loss = loss(quant, quant.detach(), context())
    loss.backward()
    assert loss.item() == 0
