import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn

from taskptq.core import float_only
from taskptq.core.switches import is_weight_quantizer, quantizers
from taskptq.modules.base import quant_modules
from taskptq.prepare.blocks import Unit
from taskptq.reconstruction.losses import MSEReconLoss
from taskptq.reconstruction.rounding.learned import (
    Minibatch,
    UnitResult,
    train_unit,
)
from taskptq.testing import TinyBlock, tiny_batches


@pytest.fixture
def unit(quantized, random_images):
    torch.manual_seed(1)
    block = TinyBlock(3, 8)
    return Unit(
        'block',
        quantized(
            nn.Sequential(block), random_images(), bits=2, activation_bits=4
        )[0],
    )


@pytest.fixture
def draw(unit, random_images):
    batches = random_images(num_batches=4)
    with float_only(unit.module), torch.no_grad():
        targets = [unit.module(x) for x in batches]

    def make():
        index = int(torch.randint(len(batches), ()))
        return Minibatch(
            run=lambda: unit.module(batches[index]), target=targets[index]
        )

    return make


def train(unit, draw, config, loss=None, **kwargs):
    torch.manual_seed(0)
    return train_unit(
        unit, draw, config, loss=loss or MSEReconLoss(), **kwargs
    )


def scales_of(unit):
    return {
        name: quantizer.scale.detach().clone()
        for name, quantizer in quantizers(unit.module)
    }


@pytest.mark.parametrize('drop_prob', [0.0, 0.5])
def test_loss_falls(unit, draw, quick, drop_prob):
    config = quick(steps=120, drop_prob=drop_prob, weight_lr=0.03)
    losses = []
    result = train(
        unit, draw, config, on_step=lambda _s, v: losses.append(float(v))
    )
    assert result.steps == len(losses) == 120
    assert result.loss_start == pytest.approx(losses[0])
    assert result.loss_end == pytest.approx(sum(losses[-25:]) / 25, rel=1e-4)
    assert result.loss_end < 0.7 * result.loss_start
    assert result.num_weights == sum(
        module.weight.numel() for _, module in unit.layers()
    )


def test_penalty_settles_the_roundings(unit, draw, quick):
    settled = [
        train(
            unit,
            draw,
            quick(
                steps=200,
                weight_lr=0.2,
                rounding_weight=weight,
                warmup=0.2,
                beta_start=20.0,
                beta_end=2.0,
            ),
        ).settled
        for weight in (0.0, 300.0)
    ]
    assert settled[0] < 0.8
    assert settled[1] > 0.9


def test_roundings_move_away_from_nearest(unit, draw, quick):
    before = {n: m.codes() for n, m in unit.layers()}
    train(unit, draw, quick(steps=100))
    moved = torch.cat(
        [(m.codes() - before[n]).flatten() for n, m in unit.layers()]
    )
    # Up or down from the float value: a code away at most.
    assert moved.abs().max() == 1
    assert 0.02 < moved.abs().float().mean() < 0.6


def test_gamma_and_beta_of_aligned_queries_learn(quantized, quick):
    images = tiny_batches('transformer')
    model = quantized(
        'transformer',
        activation_bits=3,
        query={'type': 'AlignedQuantizer', 'num_bits': 3},
    )
    quantizer = model.layers[0].self_attn.query_quantizer
    quantizer.beta.data.mul_(1e-3)  # its own size would tell nothing
    before = {n: p.detach().clone() for n, p in quantizer.named_parameters()}
    with float_only(model), torch.no_grad():
        target = model(images[0])

    def draw():
        return Minibatch(run=lambda: model(images[0]), target=target)

    config = quick(steps=60, rounding='nearest', drop_prob=0.0)
    result = train(Unit('', model), draw, config)
    assert result.loss_end < result.loss_start
    reach = config.scale_lr * config.steps * before['gamma'].abs().mean()
    for name in ('gamma', 'beta'):
        moved = (getattr(quantizer, name) - before[name]).abs()
        assert 0.02 * reach < moved.mean() < reach
        assert not getattr(quantizer, name).requires_grad


@pytest.mark.parametrize('learn_scales', [True, False])
@pytest.mark.parametrize('rounding', ['adaround', 'nearest'])
def test_only_what_shall_learn_does(unit, draw, quick, learn_scales, rounding):
    before = scales_of(unit)
    weights = {n: m.weight.clone() for n, m in unit.layers()}
    result = train(
        unit, draw, quick(learn_scales=learn_scales, rounding=rounding)
    )
    for name, scale in scales_of(unit).items():
        learned = learn_scales and not is_weight_quantizer(name)
        assert torch.equal(scale, before[name]) != learned, name
    for name, module in unit.layers():
        assert torch.equal(module.weight, weights[name])
        assert module.rounded_parameters == (
            ('weight',) if rounding == 'adaround' else ()
        )
    nothing = rounding == 'nearest' and not learn_scales
    assert result.steps == (0 if nothing else 30)


def test_flags_switches_and_gradients_are_restored(unit, draw, quick):
    unit.module.conv1.weight.requires_grad_(False)
    flags = {n: p.requires_grad for n, p in unit.module.named_parameters()}
    train(unit, draw, quick())
    for name, parameter in unit.module.named_parameters():
        assert parameter.requires_grad == flags[name], name
        assert parameter.grad is None, name
    for _, quantizer in quantizers(unit.module):
        assert not quantizer.enabled
        assert quantizer.drop_prob == 0
    for _, module in quant_modules(unit.module):
        assert not module._roundings


def test_flags_are_restored_after_an_error(unit, draw, quick):
    flags = {n: p.requires_grad for n, p in unit.module.named_parameters()}

    def broken(quant_out, float_out, context):
        raise RuntimeError('no such head')

    with pytest.raises(RuntimeError, match='no such head'):
        train(unit, draw, quick(), loss=broken)
    assert flags == {
        n: p.requires_grad for n, p in unit.module.named_parameters()
    }
    assert not any(q.drop_prob for _, q in quantizers(unit.module))
    assert not any(q.enabled for _, q in quantizers(unit.module))


@pytest.mark.parametrize('skip_below', [1e-6, 10.0])
def test_unit_with_nothing_to_gain_is_left_at_nearest(
    unit, draw, quick, skip_below
):
    before = {n: m.codes() for n, m in unit.layers()}
    scales = scales_of(unit)
    config = quick(skip_below=skip_below, weight_lr=0.05)
    result = train(unit, draw, config)
    is_skipped = skip_below > 1
    assert result.steps == (0 if is_skipped else 30)
    assert result.loss_start > 0
    codes = {n: m.codes() for n, m in unit.layers()}
    same = [torch.equal(codes[name], before[name]) for name in codes]
    assert all(same) == is_skipped
    changed = [
        name
        for name, scale in scales_of(unit).items()
        if not torch.equal(scale, scales[name])
    ]
    assert bool(changed) != is_skipped


def test_patience_stops_scales_on_a_plateau(unit, draw, quick):
    config = quick(
        rounding='nearest',
        steps=500,
        scale_lr=1e-12,
        patience=50,
        drop_prob=0.0,
    )
    result = train(unit, draw, config)
    assert 50 <= result.steps <= 150
    assert result.steps % 25 == 0


def test_patience_waits_for_the_roundings(unit, draw, quick):
    # Without a penalty nothing settles: a plateau alone does not stop.
    config = quick(steps=150, warmup=1.0, patience=25)
    result = train(unit, draw, config)
    assert result.settled < 0.999
    assert result.steps == 150


def test_layer_that_some_minibatches_leave_out(quantized, quick):
    class Forked(nn.Module):
        def __init__(self):
            super().__init__()
            self.always = nn.Conv2d(3, 4, 3)
            self.seldom = nn.Conv2d(3, 4, 3)
            self.never = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            out = self.always(x)
            if x.mean() > 5:
                return out + self.never(x)
            return out + self.seldom(x) if x.mean() > 0 else out

    batches = [torch.randn(4, 3, 8, 8) + shift for shift in (-1, 1, 9)]
    unit = Unit('forked', quantized(Forked().eval(), batches))
    before = unit.module.never.codes()
    with float_only(unit.module), torch.no_grad():
        targets = [unit.module(x) for x in batches]
    turns = itertools.cycle([0, 0, 1])

    def draw():
        index = next(turns)
        return Minibatch(
            run=lambda: unit.module(batches[index]), target=targets[index]
        )

    result = train(
        unit,
        draw,
        quick(steps=60, weight_lr=0.3, rounding_weight=100.0, warmup=0.1),
    )
    assert result.settled > 0.6
    # The penalty alone drives a weight to the code it is nearest to.
    assert torch.equal(unit.module.never.codes(), before)


@pytest.mark.parametrize('steps', [10, 60])
def test_loss_that_is_not_a_number(unit, draw, quick, steps):
    def undefined(quant_out, float_out, context):
        return (quant_out - float_out).square().mean() * float('nan')

    with pytest.raises(ValueError, match=r'^block: .* loss is nan at step'):
        train(unit, draw, quick(steps=steps), loss=undefined)


def _codes(unit):
    layers = quant_modules(unit.module)
    return {name: layer.codes() for name, layer in layers}


@pytest.mark.parametrize(
    ('change', 'fault'),
    [
        # What clamps an overflow has finite outputs.
        (lambda x: (1e4 * x).exp().clamp(max=1e8), 'the gradients of its'),
        (lambda x: (1e4 * x).exp(), 'its quantized'),
    ],
)
def test_a_unit_that_overflows_stays_as_it_was(
    unit, draw, quick, caplog, change, fault
):
    def overflowing():
        batch = draw()
        return replace(batch, run=lambda: change(batch.run()))

    before = _codes(unit)
    result = train(unit, overflowing, quick(steps=60))
    assert result.fault == f'{fault} outputs are not finite'
    assert f'block is not reconstructed, as {fault}' in caplog.text
    assert result.steps == 0
    after = _codes(unit)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_unit_without_finite_targets_stays_as_it_was(unit, draw, quick):
    def undefined():
        batch = draw()
        return replace(batch, target=batch.target / 0)

    result = train(unit, undefined, quick(steps=60))
    assert result.fault == 'its float outputs are not finite'
    assert UnitResult.from_dict(result.to_dict()) == result


def test_bfloat16_autocast_runs_and_learns(unit, draw, quick):
    seen = []

    def loss(quant_out, float_out, context):
        seen.append(quant_out.dtype)
        return MSEReconLoss()(quant_out, float_out, context)

    result = train(
        unit, draw, quick(steps=200, autocast='bfloat16'), loss=loss
    )
    assert result.loss_end < 0.8 * result.loss_start
    assert set(seen) <= {torch.bfloat16, torch.float32}
    with torch.autocast('cpu', dtype=torch.bfloat16), torch.no_grad():
        inside = unit.module.conv1(torch.randn(1, 3, 8, 8))
    assert inside.dtype == torch.bfloat16
    for _, module in unit.layers():
        assert module._rounded['weight'].dtype == torch.float32


def test_context_tells_what_a_loss_may_know(unit, draw, quick):
    contexts = []

    def loss(quant_out, float_out, context):
        contexts.append(context)
        return MSEReconLoss()(quant_out, float_out, context)

    adapter = object()
    train(unit, draw, quick(steps=3), loss=loss, adapter=adapter)
    assert [c.step for c in contexts] == [0, 1, 2]
    assert {c.unit for c in contexts} == {'block'}
    assert {c.num_steps for c in contexts} == {3}
    assert contexts[0].adapter is adapter
    assert contexts[0].heads_float == {}


def test_results_keep_their_names_in_files():
    """State files and results of older versions stay readable."""
    result = UnitResult(
        name='stem', loss_start=2.0, loss_end=1.0, settled=0.9, flipped=0.1
    )
    stored = result.to_dict()
    assert (stored['decided'], stored['turned']) == (0.9, 0.1)
    assert not stored.keys() & {'settled', 'flipped'}
    assert UnitResult.from_dict(stored) == result
