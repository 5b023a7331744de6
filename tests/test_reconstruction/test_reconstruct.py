import copy
import logging

import pytest
import torch
from torch import nn

from taskptq.calibration import calibrate
from taskptq.modules.base import quant_modules
from taskptq.prepare import prepare
from taskptq.reconstruction import (
    MSEReconLoss,
    freeze,
    reconstruct,
)
from taskptq.testing import (
    TINY_MODELS,
    TinyBlock,
    tiny_batches,
    tiny_model,
)


class Adapter:
    """Named outputs of a tiny model, as the network scope wants them."""

    def forward_heads(self, model, batch):
        scores = model(batch)
        return {'cls': scores[:, :2], 'reg': scores[:, 2:]}


class Late(nn.Module):
    """Has a layer and a block that only bright images reach."""

    def __init__(self):
        super().__init__()
        self.block = TinyBlock(3, 6)
        self.auxiliary = nn.Conv2d(6, 4, 1)
        self.extra = TinyBlock(6, 4)

    def forward(self, x):
        bright = x.mean() > 5
        x = self.block(x)
        if bright:
            x = self.extra(x) + self.auxiliary(x)
        return x


@torch.no_grad()
def output_error(model, name, batches):
    """Mean squared error of a frozen model over the float output's power."""
    reference = tiny_model(name)
    noise = power = 0.0
    for x in batches:
        expected = reference(x)
        noise += float((model(x) - expected).square().mean())
        power += float(expected.square().mean())
    return noise / power


def codes_of(model):
    return {
        f'{name}.{parameter}': module.codes(parameter)
        for name, module in quant_modules(model)
        for parameter, _ in module.active_slots()
    }


def assert_same_state(one, two, same=True):
    states = [
        {**m.state_dict(), **{f'{k}:codes': v for k, v in codes_of(m).items()}}
        for m in (one, two)
    ]
    assert states[0].keys() == states[1].keys()
    equal = all(torch.equal(v, states[1][k]) for k, v in states[0].items())
    assert equal == same


CASES = [
    *[('adaround', 'block', name) for name in TINY_MODELS],
    *[('gptq', 'block', name) for name in TINY_MODELS],
    ('adaround', 'layer', 'conv'),
    ('adaround', 'layer', 'transformer'),
    ('gptq', 'layer', 'conv'),
    ('adaround', 'network', 'transformer'),
    ('adaround', 'network', 'window'),
    ('nearest', 'block', 'transposed'),
    ('nearest', 'network', 'transformer'),
]


SLOW = pytest.mark.slow


def is_short(case):
    """Closed forms, and one model for each way to learn."""
    rounding, scope, name = case
    return rounding != 'adaround' or (scope, name) in (
        ('block', 'conv'),
        ('layer', 'conv'),
        ('network', 'transformer'),
    )


@pytest.mark.parametrize(
    ('rounding', 'scope', 'name', 'bits'),
    [
        pytest.param(*case, bits, marks=() if is_short(case) else SLOW)
        for case in CASES
        for bits in (2, 3)
        if bits == 2 or case == ('adaround', 'block', 'conv')
    ],
)
def test_output_error_falls(
    rounding, scope, name, bits, quantized, quick, forward
):
    batches = tiny_batches(name, num_batches=3, batch_size=8)
    # Only scales can gain where roundings stay: coarse activations.
    model = quantized(
        name,
        batches,
        bits=8 if rounding == 'nearest' else bits,
        activation_bits=bits if rounding == 'nearest' else 8,
    )
    plain = copy.deepcopy(model)
    freeze(plain)
    # A network of few outputs fits them softly before anything settles:
    # the penalty starts at once there.
    penalty = (
        dict(rounding_weight=300.0, warmup=0.0, drop_prob=0.0)
        if scope == 'network'
        else dict(rounding_weight=30.0, drop_prob=0.3)
    )
    config = quick(
        rounding=rounding,
        scope=scope,
        batch_size=24,
        # A whole network settles later, when depends on the processor.
        steps=200 if scope == 'network' else 100,
        weight_lr=0.1,
        scale_lr=0.02 if rounding == 'nearest' else 0.002,
        **penalty,
    )
    report = reconstruct(
        model,
        batches,
        config,
        forward=forward,
        adapter=Adapter(),
        progress=False,
    )
    freeze(model)
    before = output_error(plain, name, batches)
    after = output_error(model, name, batches)
    assert after < (1 if rounding == 'nearest' else 0.9) * before
    assert report.uncalled == []
    names = [unit.name for unit in report.units]
    assert len(names) == len(set(names))
    assert (names == ['']) == (scope == 'network')


@pytest.mark.parametrize('num_batches', [1, 4])
@pytest.mark.parametrize('scope', ['layer', 'block'])
@pytest.mark.parametrize('name', TINY_MODELS)
def test_the_model_runs_rarely(
    name, scope, num_batches, quantized, quick, forward, count_calls
):
    batches = tiny_batches(name, num_batches=num_batches)
    model = quantized(name, batches)
    calls = count_calls(model)
    report = reconstruct(
        model,
        batches,
        quick(steps=1, scope=scope),
        forward=forward,
        progress=False,
    )
    passes = len(calls) / len(batches)
    assert passes == pytest.approx(report.num_forwards)
    assert passes <= 2 + report.num_breaks
    assert report.num_breaks < len(report.units)
    if (name, scope) == ('conv', 'block'):
        # stem | relu | layer1 - layer2 | mean | head
        assert report.num_breaks == 2
        assert [u.name for u in report.units] == [
            'stem',
            'layer1',
            'layer2',
            'head',
        ]


def test_a_long_chain_takes_one_pass_and_a_bit(
    quantized, quick, forward, random_images, count_calls
):
    batches = random_images(num_batches=4)
    blocks = [TinyBlock(3, 4), *[TinyBlock(4, 4) for _ in range(5)]]
    model = quantized(nn.Sequential(*blocks), batches)
    calls = count_calls(model)
    report = reconstruct(
        model, batches, quick(steps=2), forward=forward, progress=False
    )
    assert len(report.units) == 6
    assert report.num_breaks == 0
    assert len(calls) == 4 + 1
    assert report.num_forwards == 1.25


@pytest.mark.parametrize('scope', ['block', 'network'])
def test_same_seed_same_bits(scope, quantized, quick, forward):
    batches = tiny_batches('conv')
    models = []
    for seed in (0, 0, 1):
        model = quantized('conv', batches)
        torch.manual_seed(len(models))  # the outer state has no say
        reconstruct(
            model,
            batches,
            quick(scope=scope, seed=seed),
            forward=forward,
            adapter=Adapter(),
            progress=False,
        )
        models.append(model)
    assert_same_state(models[0], models[1])
    assert_same_state(models[0], models[2], same=False)


def test_gptq_is_deterministic(quantized, quick, forward):
    batches = tiny_batches('transformer')
    models = []
    for _ in range(2):
        model = quantized('transformer', batches)
        report = reconstruct(
            model,
            batches,
            quick(rounding='gptq'),
            forward=forward,
            progress=False,
        )
        models.append(model)
    assert_same_state(*models)
    assert {unit.steps for unit in report.units} == {0}


def test_random_state_outside_is_left_alone(quantized, quick, forward):
    model, batches = quantized('conv'), tiny_batches('conv')
    before = torch.random.get_rng_state()
    reconstruct(
        model, batches, quick(steps=2), forward=forward, progress=False
    )
    assert torch.equal(torch.random.get_rng_state(), before)


def test_spilling_changes_nothing(quantized, quick, forward, tmp_path):
    batches = tiny_batches('conv', num_batches=3)
    models, spilled = [], []
    for cache_bytes in (1 << 30, 20_000):
        model = quantized('conv', batches)
        report = reconstruct(
            model,
            batches,
            quick(cache_bytes=cache_bytes),
            forward=forward,
            cache_dir=tmp_path / 'cache',
            progress=False,
        )
        models.append(model)
        spilled.append(report.spilled_bytes)
    assert_same_state(*models)
    assert spilled[0] == 0 < spilled[1]
    assert not list(tmp_path.glob('cache/*'))


def test_context_of_a_block(quantized, quick, forward):
    batches = tiny_batches('conv', num_batches=2, batch_size=3)
    model, contexts = quantized('conv', batches), []

    def loss(quant_out, float_out, context):
        contexts.append((context, quant_out.shape, float_out.shape))
        return MSEReconLoss()(quant_out, float_out, context)

    config = quick(steps=2, batch_size=4)
    reconstruct(
        model,
        batches,
        config,
        forward=forward,
        loss=loss,
        adapter='mine',
        progress=False,
    )
    assert [c.unit for c, *_ in contexts] == [
        name for name in ('stem', 'layer1', 'layer2', 'head') for _ in '12'
    ]
    for context, quant_shape, float_shape in contexts:
        assert quant_shape == float_shape
        assert quant_shape[0] == len(context.image_ids) == 4
        assert set(context.image_ids) < set(range(6))
        assert context.num_steps == 2
        assert context.adapter == 'mine'
        assert context.heads_float == context.heads_quant == {}


def test_context_of_the_network(quantized, quick, forward, count_calls):
    batches = tiny_batches('conv', num_batches=2, batch_size=3)
    model, contexts = quantized('conv', batches, bits=2), []
    reference = tiny_model('conv')

    def loss(quant_out, float_out, context):
        contexts.append(context)
        assert context.heads_quant['cls'] is quant_out['cls']
        assert context.heads_float['reg'] is float_out['reg']
        assert quant_out['cls'].requires_grad
        return MSEReconLoss()(quant_out, float_out, context)

    adapter = Adapter()
    calls = count_calls(model)
    report = reconstruct(
        model,
        batches,
        quick(steps=6, scope='network'),
        forward=forward,
        loss=loss,
        adapter=adapter,
        progress=False,
    )
    assert len(calls) == 2 + 6
    assert report.num_forwards == 1
    assert [unit.name for unit in report.units] == ['']
    for context in contexts:
        assert context.unit == ''
        assert context.adapter is adapter
        assert context.image_ids in ((0, 1, 2), (3, 4, 5))
        with torch.no_grad():
            expected = reference(batches[context.image_ids[0] // 3])
        torch.testing.assert_close(
            context.heads_float['cls'], expected[:, :2], rtol=1e-4, atol=1e-5
        )


def test_uncalled_units_are_named_and_rounded_to_nearest(
    make_qconfig, quick, forward, random_images, caplog
):
    batches = random_images()
    # Behind the batches that are looked at for the order of the units.
    batches = [*batches, *batches, *batches, batches[0] + 20][-5:]
    model = Late()
    prepare(model.eval(), make_qconfig())
    calibrate(model, batches, forward=forward)
    before = codes_of(model)
    with caplog.at_level(logging.WARNING, logger='taskptq'):
        report = reconstruct(
            model, batches, quick(), forward=forward, progress=False
        )
    assert [unit.name for unit in report.units] == ['block']
    assert report.uncalled == [
        'auxiliary',
        'extra.conv1',
        'extra.conv2',
        'extra.shortcut.0',
    ]
    assert 'auxiliary is not called' in caplog.text
    freeze(model)
    for name, codes in codes_of(model).items():
        if not name.startswith('block'):
            assert torch.equal(codes, before[name]), name


def test_what_calibration_left_float_is_not_rounded(
    make_qconfig, quick, forward, random_images, caplog
):
    batches = random_images()
    model = Late()
    prepare(model.eval(), make_qconfig())
    calibrate(model, batches, forward=forward, unreached='float')
    before = model.auxiliary.weight.clone()
    with caplog.at_level(logging.WARNING, logger='taskptq'):
        report = reconstruct(
            model, batches, quick(), forward=forward, progress=False
        )
    assert report.uncalled == []
    assert 'rounded to nearest' not in caplog.text
    freeze(model)
    assert torch.equal(model.auxiliary.weight, before)


def test_further_blocks(quantized, quick, forward):
    model, batches = quantized('window'), tiny_batches('window')
    report = reconstruct(
        model,
        batches,
        quick(steps=1, scope='layer'),
        forward=forward,
        progress=False,
    )
    names = [unit.name for unit in report.units]
    assert names == ['embed', 'attn', 'fc1', 'fc2', 'head']
    with pytest.raises(ValueError, match=r'nothing_like_it'):
        reconstruct(
            model,
            batches,
            quick(blocks=['nothing_like_it']),
            forward=forward,
            progress=False,
        )


def test_mode_flags_and_switches_are_restored(quantized, quick, forward):
    model, batches = quantized('conv'), tiny_batches('conv')
    model.train()
    model.head.bias.requires_grad_(False)
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    reconstruct(
        model, batches, quick(steps=2), forward=forward, progress=False
    )
    assert model.training
    assert flags == {n: p.requires_grad for n, p in model.named_parameters()}


def test_refusals(quantized, quick, forward):
    model, batches = quantized('conv'), tiny_batches('conv')
    with pytest.raises(ValueError, match='calibration set is empty'):
        reconstruct(model, [], quick(), forward=forward)
    with pytest.raises(
        ValueError, match=r"scope='network', .* need the model"
    ):
        reconstruct(model, batches, quick(scope='network'), forward=forward)
    with pytest.raises(ValueError, match=r"rounding='gptq' .* scope='block'"):
        reconstruct(
            model,
            batches,
            quick(scope='network', rounding='gptq'),
            forward=forward,
            adapter=Adapter(),
        )
