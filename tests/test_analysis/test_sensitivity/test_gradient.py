import pytest
import torch
from torch import nn
from wild_net import PlainAdapter, WildNet, prepared, switches

from taskptq.analysis.sensitivity.gradient import (
    CANDIDATES,
    NotDifferentiableError,
    estimate_losses,
)
from taskptq.analysis.sensitivity.measured import measure_losses
from taskptq.testing import TINY_MODELS, tiny_batches, tiny_model


def forward(model, batch):
    return model(batch)


def estimated(model, batches, **options):
    return estimate_losses(
        model, batches, forward=forward, adapter=PlainAdapter(), **options
    )


@pytest.mark.parametrize('name', TINY_MODELS)
def test_every_tiny_model(name):
    batches = tiny_batches(name)
    model = prepared(tiny_model(name), batches)
    before = switches(model)
    counted = []
    report = estimated(model, batches, advance=counted.append)
    assert switches(model) == before
    assert sum(counted) == report.num_images == 8
    for point in report.points:
        losses = [point.losses[str(bits)] for bits in CANDIDATES]
        assert losses[0] > losses[-1] > 0
        assert point.loss == losses[2]


def test_estimates_are_what_is_measured(wild, batches, adapter):
    """At 8 bits, where errors are small, tensor by tensor."""
    report = estimated(wild, batches, num_probes=200)
    measured = measure_losses(
        wild, batches, forward=forward, adapter=adapter, candidates=[8]
    )
    truth = {point.name: point.loss for point in measured.points}
    assert len(truth) == 10
    for point in report.points:
        assert 0.6 < point.loss / truth[point.name] < 1.6


def test_the_wild_tensor_is_the_worst(wild, batches):
    report = estimated(wild, batches)
    worst = report.sorted()[0]
    assert worst.name == 'depthwise.input_quantizer'
    assert worst.loss > 0.5 * report.estimated
    assert worst.role == 'depthwise input'
    assert not worst.per_channel
    assert worst.effective_bits < 3.75


def test_scales_per_channel_tame_it(batches):
    model = prepared(WildNet(), batches, activation={'per_channel': True})
    report = estimated(model, batches)
    point = next(
        p for p in report.points if p.name == 'depthwise.input_quantizer'
    )
    assert point.per_channel
    assert point.effective_bits > 5


def test_the_seed_decides(wild, batches):
    first, second, other = (
        [p.losses for p in estimated(wild, batches, seed=seed).points]
        for seed in (0, 0, 1)
    )
    assert first == second != other


def test_frozen_parameters_have_losses_as_well(wild, batches):
    for parameter in wild.parameters():
        parameter.requires_grad_(False)
    report = estimated(wild, batches)
    assert all(point.loss > 0 for point in report.points)
    assert not any(p.requires_grad for p in wild.parameters())


def test_calls_of_one_layer_add_up():
    """A head on two levels: its weight's error acts on both."""

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return {'0': self.head(x), '1': self.head(x[..., ::2, ::2])}

    batches = [torch.randn(4, 3, 8, 8)]
    model = prepared(Shared(), batches)
    report = estimated(model, batches, num_probes=300)
    measured = measure_losses(
        model, batches, forward=forward, adapter=PlainAdapter()
    )
    for point, truth in zip(report.points, measured.points, strict=True):
        # Linear: exact, but for the probes.
        assert point.losses['4'] == pytest.approx(truth.losses['4'], rel=0.25)


def test_detached_outputs_are_refused(batches):
    class Cut(WildNet):
        def forward(self, x):
            return super().forward(x).detach()

    model = prepared(Cut(), batches)
    before = switches(model)
    with pytest.raises(NotDifferentiableError, match="estimator='alone'"):
        estimated(model, batches)
    assert switches(model) == before


def test_nothing_to_run_is_refused(wild):
    with pytest.raises(ValueError, match='no batch'):
        estimated(wild, [])


def test_a_weight_can_be_rounded_otherwise(wild, batches):
    """At its own bits alone."""
    plain = {p.name: p for p in estimated(wild, batches).points}
    name = 'depthwise.weight_quantizer'
    weight = wild.depthwise.weight.detach()
    rounded = wild.depthwise.weight_quantizer.fake_quantize(weight).detach()
    half = {name: weight + (rounded - weight) / 2}
    found = {p.name: p for p in estimated(wild, batches, rounded=half).points}
    own = str(plain[name].num_bits)
    assert found[name].losses[own] == pytest.approx(
        plain[name].losses[own] / 4, rel=1e-3
    )
    rest = {k: v for k, v in plain[name].losses.items() if k != own}
    assert all(found[name].losses[k] == v for k, v in rest.items())
    del plain[name], found[name]
    assert found == plain
