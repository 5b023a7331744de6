"""Positions weigh what the model's outputs depend on them."""

import pytest
import torch
from torch import nn

from taskptq.core import float_only, quantizing
from taskptq.prepare.blocks import Unit
from taskptq.reconstruction import ReconstructionConfig, reconstruct
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


class Failing(Adapter):
    """Fails on the second of two batches."""

    calls = 0

    def forward_heads(self, model, batch):
        self.calls += 1
        if self.calls > 1:
            raise NotImplementedError('no named\n outputs')
        return super().forward_heads(model, batch)


def test_optional_weights_are_left_out_with_a_warning(weighted, caplog):
    model, _ = weighted
    batches = [torch.randn(1, 3, 8, 8) for _ in range(2)]
    with caplog.at_level('WARNING', logger='taskptq'):
        found = find_position_weights(
            model, batches, adapter=Failing(), seed=0, optional=True
        )
    assert found is None
    assert 'weighed the same: no named outputs' in caplog.text
    assert not any(module._forward_hooks for module in model.modules())
    with pytest.raises(NotImplementedError):
        find_position_weights(model, batches, adapter=Failing(), seed=0)


def test_weights_that_are_optional_have_to_be_asked_for():
    with pytest.raises(ValueError, match='position_optional=True'):
        ReconstructionConfig(position_optional=True)


def test_units_have_weights_of_their_outputs(weighted):
    model, _ = weighted
    found = find_position_weights(
        model,
        [torch.randn(2, 3, 8, 8)],
        adapter=Adapter(),
        seed=0,
        units=[Unit('act', model.act)],
    )
    (values,) = found.of_units['act:0', 0].values()
    assert values.shape == (2, 8, 8)
    assert bool((values[..., 4:] == FLOOR).all())
    assert float(values.mean()) == pytest.approx(1.0, rel=1e-4)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize('rounding', ['gptq', 'adaround'])
def test_reconstruction_attends_to_what_matters(quantized, rounding):
    """The error falls where outputs count, and may rise elsewhere."""
    batches = [torch.randn(4, 3, 8, 8) for _ in range(2)]
    for batch in batches:
        batch[..., 4:] = 3 * batch[..., 4:].flip(1) + 1
    errors = {}
    for weigh in (False, True):
        torch.manual_seed(0)
        model = quantized(Net(), batches, bits=3)
        with torch.no_grad(), float_only(model):
            exact = [model(batch) for batch in batches]
        settings = dict(match_float=True, bias_correction=True, steps=20)
        if rounding == 'adaround':
            settings |= dict(start='gptq', skip_below=0.0, scope='layer')
        else:
            settings |= dict(rounding='gptq')
        config = ReconstructionConfig(position_weights=weigh, **settings)
        reconstruct(
            model,
            batches,
            config,
            forward=lambda model, batch: model(batch),
            adapter=Adapter(),
            progress=False,
        )
        with torch.no_grad(), quantizing(model):
            errors[weigh] = sum(
                float((model(x) - y)[..., :4].square().mean())
                for x, y in zip(batches, exact, strict=True)
            )
    assert errors[True] < errors[False]


def test_without_an_adapter_it_is_refused(quantized):
    batches = [torch.randn(2, 3, 8, 8)]
    model = quantized(Net(), batches, bits=4)
    config = ReconstructionConfig(
        rounding='gptq', match_float=True, position_weights=True
    )
    with pytest.raises(ValueError, match=r'position_weights .*need'):
        reconstruct(
            model, batches, config, forward=lambda m, x: m(x), progress=False
        )


def test_parts_in_eval_mode_stay_there():
    model = Net()
    model.first.eval()  # as the frozen stages of a backbone
    find_position_weights(
        model,
        [torch.randn(1, 3, 4, 8)],
        adapter=Adapter(),
        seed=0,
        optional=True,
    )
    assert model.training
    assert model.second.training
    assert not model.first.training
