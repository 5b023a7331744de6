import json

import pytest
import torch
from torch import nn

from taskptq.calibration import calibrate
from taskptq.core.switches import quantizers
from taskptq.prepare import prepare
from taskptq.testing import TINY_MODELS, tiny_batches, tiny_model


class Attending(nn.Module):
    """Attention on its own terms: self, cross, or value apart."""

    def __init__(self, mode):
        super().__init__()
        self.mode = mode
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        other = x * 2
        arguments = {
            'self': (x, x, x),
            'cross': (x, other, other),
            'value apart': (x, x, other),
            'all apart': (x, other, x + 1),
        }
        return self.attention(*arguments[self.mode])[0]


@pytest.mark.parametrize('name', TINY_MODELS)
def test_one_pass_sets_every_range(name, make_qconfig, forward, count_calls):
    model, batches = tiny_model(name), tiny_batches(name, num_batches=3)
    prepare(model, make_qconfig())
    calls = count_calls(model)
    report = calibrate(model, batches, forward=forward)
    assert len(calls) == report.num_batches == 3
    assert report.unobserved == []
    assert report.seconds > 0
    unset = {n for n, q in quantizers(model) if not q.calibrated}
    # What an attention shares has no range of its own.
    assert all('.key_input_' in n or '.value_input_' in n for n in unset)
    assert bool(unset) == (name in ('transformer', 'two-way'))
    assert report.softmax == {}
    assert set(report.to_dict()) == {
        'num_batches',
        'seconds',
        'unobserved',
        'left_float',
        'covering',
        'warnings',
        'softmax',
    }
    assert report.left_float == {}
    assert report.covering == [0]
    assert report.warnings == []


@pytest.mark.parametrize('per_head', [False, True])
@pytest.mark.parametrize('name', ['transformer', 'window'])
def test_softmax_grids_are_reported(name, per_head, make_qconfig, forward):
    model, batches = tiny_model(name), tiny_batches(name, num_batches=3)
    observer = dict(type='AttentionOutputObserver', per_head=per_head)
    prepare(
        model,
        make_qconfig(
            softmax=dict(
                type='PowerOfTwoQuantizer', num_bits=4, observer=observer
            )
        ),
    )
    found = calibrate(model, batches, forward=forward).to_dict()['softmax']
    softmaxes = {n: q for n, q in quantizers(model) if 'softmax' in n}
    assert found.keys() == softmaxes.keys()
    heads = {'transformer': 4, 'window': 2}[name] if per_head else 1
    for path, quantizer in softmaxes.items():
        entry = found[path]
        assert entry['tau'] == quantizer.tau.tolist()
        assert entry['scale'] == quantizer.scale.tolist()
        assert len(entry['tau']) == len(entry['scale']) == heads
        assert 0 < entry['error'] <= entry['error_tau1']
        assert entry['error_uniform'] > 0
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ('mode', 'unset'),
    [
        ('self', {'key_input_quantizer', 'value_input_quantizer'}),
        ('cross', {'value_input_quantizer'}),
        ('value apart', {'key_input_quantizer'}),
        ('all apart', set()),
    ],
)
def test_shared_attention_inputs_are_not_missing(
    mode, unset, make_qconfig, forward
):
    model = Attending(mode).eval()
    prepare(model, make_qconfig())
    report = calibrate(model, [torch.randn(2, 5, 8)], forward=forward)
    assert report.unobserved == []
    found = {
        name.rpartition('.')[2]
        for name, quantizer in quantizers(model)
        if not quantizer.calibrated
    }
    assert found == unset


@pytest.mark.parametrize('value', [float('nan'), -float('inf')])
def test_non_finite_weight_names_the_layer(value, make_qconfig):
    model = tiny_model('conv')
    prepare(model, make_qconfig())
    model.layer2.conv1.weight.data[0, 0] = value

    def never(model, batch):
        raise AssertionError('ran before the weights were checked')

    with pytest.raises(
        ValueError,
        match=(r'^layer2\.conv1\.weight holds NaN or infinity in 9 of 1152'),
    ):
        calibrate(model, tiny_batches('conv'), forward=never)


def test_non_finite_weight_of_a_float_layer_is_not_checked(
    make_qconfig, forward
):
    model = tiny_model('conv')
    model.head.weight.data[:] = float('nan')
    prepare(model, make_qconfig(keep_float=['head']))
    calibrate(model, tiny_batches('conv'), forward=forward)


def test_images_of_one_color_are_a_warning(make_qconfig, forward, caplog):
    model = tiny_model('conv')
    prepare(model, make_qconfig())
    black = torch.zeros(4, 3, 8, 8)
    tinted = black + torch.tensor([1.0, 2.0, 3.0])[:, None, None]
    batches = [black, tinted, torch.rand(2, 3, 8, 8)]
    with caplog.at_level('WARNING', logger='taskptq'):
        report = calibrate(model, batches, forward=forward)
    assert len(report.warnings) == 1
    assert report.warnings[0].startswith('8 of 10 calibration images have')
    assert caplog.messages == report.warnings


def test_input_that_never_varies_is_a_warning(make_qconfig):
    model = tiny_model('conv')
    prepare(model, make_qconfig())
    report = calibrate(
        model,
        [{'path': 'a'}, {'path': 'b'}],
        forward=lambda model, _: model(torch.full((1, 3, 8, 8), 0.5)),
    )
    assert len(report.warnings) == 1
    assert (
        'stem.input_quantizer is 0.5 everywhere in all 2'
        in (report.warnings[0])
    )


def test_runs_the_float_model(make_qconfig):
    model, batches = tiny_model('conv'), tiny_batches('conv')
    prepare(model, make_qconfig(bits=2, activation_bits=2))
    seen = []
    calibrate(model, batches, forward=lambda model, x: seen.append(model(x)))
    for out, x in zip(seen, batches, strict=True):
        expected = tiny_model('conv')(x)
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
        assert not out.requires_grad


def test_ranges_are_those_of_the_inputs(make_qconfig, forward):
    batches = tiny_batches('conv', num_batches=3)
    model = tiny_model('conv')
    prepare(model, make_qconfig())
    calibrate(model, batches, forward=forward)
    low = min(float(x.min()) for x in batches)
    high = max(float(x.max()) for x in batches)
    quantizer = model.stem.input_quantizer
    step = float(quantizer.scale)
    assert step == pytest.approx((high - low) / 255, rel=1e-5)


def modes_of(model):
    return {name: module.training for name, module in model.named_modules()}


def test_flags_and_modes_are_restored(make_qconfig, forward):
    model = tiny_model('transformer')
    prepare(model, make_qconfig())
    model.train()
    model.layers[1].eval()
    model.head.weight.requires_grad_(False)
    modes = modes_of(model)
    flags = [p.requires_grad for p in model.parameters()]
    calibrate(model, tiny_batches('transformer'), forward=forward)
    for name, mode in modes_of(model).items():
        assert mode == modes[name], name
    assert torch.is_grad_enabled()
    assert [p.requires_grad for p in model.parameters()] == flags
    for _, quantizer in quantizers(model):
        assert not quantizer.enabled
        assert not quantizer.observing


def test_empty_set(make_qconfig, forward):
    model = tiny_model('conv')
    prepare(model, make_qconfig())
    with pytest.raises(ValueError, match='calibration set is empty'):
        calibrate(model, [], forward=forward)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_non_finite_activation_names_the_layer(value, make_qconfig, forward):
    model = tiny_model('conv')
    prepare(model, make_qconfig())
    handle = model.layer1.register_forward_hook(
        lambda _m, _a, out: out * value
    )
    model.train()
    with pytest.raises(ValueError, match=r'^layer2\.\w.*quantizer: .*keep_f'):
        calibrate(model, tiny_batches('conv'), forward=forward)
    assert model.training
    assert not any(q.observing for _, q in quantizers(model))
    handle.remove()
    hooks = [m for m in model.modules() if m._forward_pre_hooks]
    assert hooks == []


def test_other_errors_pass(make_qconfig):
    model = tiny_model('conv')
    prepare(model, make_qconfig())

    def broken(model, batch):
        raise ValueError('no such file')

    with pytest.raises(ValueError, match=r'^no such file$'):
        calibrate(model, tiny_batches('conv'), forward=broken)
