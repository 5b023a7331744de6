"""Positions weigh what the model's outputs depend on them."""

import pytest
import torch
from torch import nn

from taskptq.reconstruction.position_weights import (
    FLOOR,
    find_position_weights,
)


class Adapter:
    """One output; only the left half of it matters."""

    def forward_heads(self, model, batch):
        return {'map': model(batch)}

    def output_weights(self, heads):
        weights = torch.zeros_like(heads['map'])
        weights[..., :4] = 1.0
        return {'map': weights}


class Net(nn.Module):
    """Two convolutions with an activation that works in place."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 1)
        self.act = nn.ReLU(inplace=True)
        self.second = nn.Conv2d(6, 2, 1)

    def forward(self, x):
        return self.second(self.act(self.first(x)))


@pytest.fixture
def weighted(quantized):
    batches = [torch.randn(2, 3, 8, 8) for _ in range(2)]
    model = quantized(Net(), batches, bits=4)
    found = find_position_weights(model, batches, adapter=Adapter(), seed=0)
    return model, found


@pytest.mark.parametrize('layer', ['first', 'second'])
def test_positions_without_influence_keep_the_floor(weighted, layer):
    _, found = weighted
    maps = [found.of(layer, batch, 0) for batch in range(2)]
    for values in maps:
        assert values.shape == (2, 8, 8)
        assert bool((values[..., 4:] == FLOOR).all())
    assert float(torch.stack(maps).mean()) == pytest.approx(1.0, rel=1e-4)
    assert found.of(layer, 0, 1) is found.of(layer, 2, 0) is None


def test_weights_are_the_curvature_of_the_output(weighted):
    _, found = weighted
    # The outputs themselves: every sign squared is 1.
    values = found.of('second', 0, 0)
    left = values[..., :4]
    assert torch.allclose(left, left.mean())


def test_the_model_is_left_as_it_was(weighted):
    model, _ = weighted
    model.train().requires_grad_(True)
    batches = [torch.randn(1, 3, 8, 8)]
    find_position_weights(model, batches, adapter=Adapter(), seed=0)
    assert model.training
    assert all(p.requires_grad for p in model.first.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert model.first.weight.grad is None


def test_a_model_without_float_outputs_is_refused(weighted):
    model, _ = weighted

    class Counting(Adapter):
        def forward_heads(self, model, batch):
            return {'map': model(batch).detach()}

    with pytest.raises(ValueError, match='position_weights'):
        find_position_weights(
            model, [torch.randn(1, 3, 8, 8)], adapter=Counting(), seed=0
        )
