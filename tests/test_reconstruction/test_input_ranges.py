"""Ranges of activations by the error of the model's outputs."""

import logging

import pytest
import torch
from torch import nn

from taskptq.core import float_only, quantizing
from taskptq.reconstruction import ReconstructionConfig, reconstruct
from taskptq.reconstruction.input_ranges import (
    fit_input_ranges,
    input_ranges_tried,
)


class Adapter:
    """One output, all of whose values count the same."""

    def forward_heads(self, model, batch):
        return {'map.0': model(batch)}

    def output_weights(self, heads):
        return {name: torch.ones_like(head) for name, head in heads.items()}


class Saturating(nn.Module):
    """Hardly depends on how large the large values are."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 3, 1)
        self.second = nn.Conv2d(3, 4, 1)
        nn.init.dirac_(self.first.weight)
        nn.init.zeros_(self.first.bias)

    def forward(self, x):
        return self.second((4 * self.first(x)).tanh())


def sparse_images(number):
    """Most values are small, a few are large."""
    generator = torch.Generator().manual_seed(number)
    values = torch.rand(4, 3, 16, 16, generator=generator)
    return values.pow(6) * 4


@pytest.fixture
def subject(quantized):
    torch.manual_seed(0)
    batches = [sparse_images(number) for number in range(3)]
    return quantized(Saturating(), batches, bits=4, activation_bits=4), batches


def error_of(model, batch):
    with torch.no_grad(), quantizing(model, weights=False):
        found = model(batch)
    with torch.no_grad(), float_only(model):
        return float((found - model(batch)).square().sum())


def test_values_that_matter_get_finer_steps(subject):
    model, batches = subject
    unseen = sparse_images(9)
    before = error_of(model, unseen)
    steps = {
        name: getattr(model, name).input_quantizer.scale.clone()
        for name in ('first', 'second')
    }
    factors = fit_input_ranges(model, batches, adapter=Adapter(), seed=0)
    assert error_of(model, unseen) < 0.5 * before
    assert factors
    for name, factor in factors.items():
        assert 0.3 < factor < 2
        layer = name.rpartition('.')[0]
        torch.testing.assert_close(
            getattr(model, layer).input_quantizer.scale, steps[layer] * factor
        )


@pytest.mark.parametrize('symmetric', [False, True])
def test_zero_points_move_unless_grids_are_symmetric(quantized, symmetric):
    torch.manual_seed(0)
    batches = [4 * torch.rand(4, 3, 16, 16) for _ in range(3)]
    model = quantized(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 3, 1)),
        batches,
        bits=4,
        activation=dict(num_bits=4, symmetric=symmetric),
    )
    quantizer = model[0].input_quantizer
    # Codes for values below 0, of which there are none.
    quantizer.set_zero_point(quantizer.zero_point + 5)
    before = int(quantizer.zero_point)
    fit_input_ranges(model, batches, adapter=Adapter(), seed=0)
    expected = before if symmetric else before - 1
    assert int(quantizer.zero_point) == expected


def test_learned_zero_points_follow(quantized):
    batches = [4 * torch.rand(4, 3, 16, 16)]
    model = quantized(
        nn.Sequential(nn.Conv2d(3, 4, 1)),
        batches,
        activation=dict(
            type='LSQQuantizer', num_bits=4, learn_zero_point=True
        ),
    )
    quantizer = model[0].input_quantizer
    quantizer.set_zero_point(torch.tensor([99]))
    assert float(quantizer.offset) == int(quantizer.zero_point) == 15
    fit_input_ranges(model, batches, adapter=Adapter(), seed=0)
    assert float(quantizer.offset) == int(quantizer.zero_point) < 15


def test_the_model_is_left_as_it_was(subject):
    model, batches = subject
    model.train().requires_grad_(True)
    fit_input_ranges(model, batches, adapter=Adapter(), seed=0)
    assert model.training
    assert all(p.requires_grad for p in model.first.parameters())
    assert model.first.weight.grad is None
    assert not any(module._forward_hooks for module in model.modules())


def test_ranges_that_gain_nothing_are_undone(subject, monkeypatch):
    model, batches = subject
    before = model.second.input_quantizer.scale.clone()
    for name in ('FIRST', 'AGAIN'):
        monkeypatch.setattr(
            f'taskptq.reconstruction.input_ranges.{name}', ((3.0, 0),)
        )
    assert fit_input_ranges(model, batches, adapter=Adapter(), seed=0) == {}
    torch.testing.assert_close(model.second.input_quantizer.scale, before)


class Aside(Saturating):
    """Runs a layer that no output depends on."""

    def __init__(self):
        super().__init__()
        self.aside = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        self.aside(x)
        return super().forward(x)


def test_a_tensor_that_nothing_depends_on_stays(quantized):
    torch.manual_seed(0)
    batches = [sparse_images(number) for number in range(3)]
    model = quantized(Aside(), batches, bits=4, activation_bits=4)
    scale = model.aside.input_quantizer.scale.clone()
    factors = fit_input_ranges(model, batches, adapter=Adapter(), seed=0)
    assert 'first.input_quantizer' in factors
    assert 'aside.input_quantizer' not in factors
    assert torch.equal(model.aside.input_quantizer.scale, scale)


def test_eight_bits_stay(quantized):
    batches = [sparse_images(0)]
    model = quantized(Saturating(), batches, bits=8, activation_bits=8)

    class Unused:
        """Has no outputs: nothing may ask for them."""

    assert fit_input_ranges(model, batches, adapter=Unused(), seed=0) == {}


def test_outputs_without_a_gradient(subject, caplog):
    model, batches = subject

    class Labels(Adapter):
        """Outputs that cannot be differentiated."""

        def forward_heads(self, model, batch):
            return {'map.0': model(batch).detach()}

    with pytest.raises(ValueError, match='input_ranges'):
        fit_input_ranges(model, batches, adapter=Labels(), seed=0)
    with caplog.at_level(logging.WARNING, 'taskptq'):
        found = fit_input_ranges(
            model, batches, adapter=Labels(), seed=0, optional=True
        )
    assert found == {}
    assert 'Ranges of activations stay' in caplog.text


def test_reconstruction_fits_them_first(subject):
    model, batches = subject
    config = ReconstructionConfig(
        rounding='gptq', scope='layer', input_ranges=True
    )
    report = reconstruct(
        model,
        batches,
        config,
        forward=lambda model, batch: model(batch),
        adapter=Adapter(),
        progress=False,
    )
    assert report.to_dict()['input_ranges'] == report.input_ranges != {}


def test_ranges_can_be_tried(subject):
    model, batches = subject
    quantizer = model.first.input_quantizer
    scale, zero_point = quantizer.scale.clone(), quantizer.zero_point.clone()
    with input_ranges_tried(model, batches, adapter=Adapter(), seed=0):
        tried = quantizer.scale.clone()
    assert tried != scale
    assert quantizer.scale == scale
    assert quantizer.zero_point == zero_point
    fit_input_ranges(model, batches, adapter=Adapter(), seed=0)
    assert quantizer.scale == tried
