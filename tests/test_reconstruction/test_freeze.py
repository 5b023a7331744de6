import importlib

import pytest
import torch

from taskptq.calibration import calibrate
from taskptq.core import dropping
from taskptq.core.switches import quantizers
from taskptq.modules.base import QuantModule, quant_modules
from taskptq.modules.conv import QuantConv2d
from taskptq.prepare import QConfig, prepare
from taskptq.reconstruction import freeze, reconstruct
from taskptq.testing import TINY_MODELS, tiny_batches, tiny_model


@pytest.mark.parametrize('name', TINY_MODELS)
@pytest.mark.parametrize('rounding', [None, 'adaround', 'gptq'])
def test_proves_grid_levels_and_determinism(
    name, rounding, quantized, quick, forward
):
    model, batches = quantized(name, bits=3), tiny_batches(name)
    if rounding is not None:
        reconstruct(
            model,
            batches,
            quick(steps=5, rounding=rounding),
            forward=forward,
            progress=False,
        )
    report = freeze(model)
    assert set(report.most_levels) == {3}
    assert 2 < report.most_levels[3] <= 8
    layers = [
        (m, p) for _, m in quant_modules(model) for p, _ in m.active_slots()
    ]
    assert report.num_weights == len(layers)
    for module, parameter in layers:
        quantizer = module.weight_quantizer_of(parameter)
        weight = getattr(module, parameter)
        rows = weight.detach().transpose(0, quantizer.spec.ch_axis).flatten(1)
        assert max(row.unique().numel() for row in rows) <= 8
        assert torch.equal(quantizer.fake_quantize(weight), weight)
        assert quantizer.frozen
    on = [q for _, q in quantizers(model) if q.calibrated and not q.frozen]
    assert report.num_activations == len(on) > 0
    with torch.no_grad():
        first, second = model(batches[0]), model(batches[0])
    assert torch.equal(first, second)


def test_quantized_from_here_on(quantized, forward):
    model, batches = quantized('conv', activation_bits=2), tiny_batches('conv')
    with torch.no_grad():
        before = model(batches[0])
        freeze(model)
        after = model(batches[0])
    assert not torch.allclose(before, after, rtol=1e-2)
    assert all(q.enabled for _, q in quantizers(model))
    assert not any(q.drop_prob or q.observer for _, q in quantizers(model))
    assert not any(
        p.requires_grad for _, q in quantizers(model) for p in q.parameters()
    )
    inputs = []
    model.layer1.conv1.input_quantizer.register_forward_hook(
        lambda _m, _a, out: inputs.append(out)
    )
    with torch.no_grad():
        model(batches[0])
    assert inputs[0].unique().numel() <= 4


def test_twice_is_once(quantized):
    model = quantized('transformer')
    first = freeze(model)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    assert freeze(model) == first
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_report_is_plain(quantized):
    report = freeze(quantized('conv', bits=2)).to_dict()
    assert report['most_levels'] == {'2': 4}
    assert report['num_weights'] == 7


def test_report_has_the_share_of_weights_on_levels(forward):
    levels = {'type': 'LevelQuantizer', 'levels': 'ternary', 'num_bits': 2}
    quant, batches = tiny_model('conv').eval(), tiny_batches('conv')
    prepare(quant, QConfig.from_dict({'weight': levels, 'edges': ['head']}))
    calibrate(quant, batches, forward=forward)
    report = freeze(quant).to_dict()
    weights = [m.weight.numel() for _, m in quant_modules(quant)]
    on_levels = sum(
        m.weight.numel()
        for _, m in quant_modules(quant)
        if m.weight_kind('weight') == 'ternary'
    )
    share = report['share_on_levels']
    assert share == {'ternary': on_levels / sum(weights)}
    assert 0.5 < share['ternary'] < 1


def test_weight_off_its_grid_is_named(quantized, monkeypatch):
    model = quantized('conv')
    original = QuantModule.freeze

    def forgetful(module):
        if module is not model.layer2.conv1:
            original(module)

    monkeypatch.setattr(QuantConv2d, 'freeze', forgetful)
    with pytest.raises(
        RuntimeError, match=r'^layer2\.conv1\.weight is off its integer grid'
    ):
        freeze(model)


def test_too_many_levels_are_named(quantized):
    model = quantized('conv', bits=2)
    quantizer = model.layer1.conv2.weight_quantizer
    quantizer.scale /= 4
    quantizer.quant_min, quantizer.quant_max = -100, 100
    with pytest.raises(
        RuntimeError, match=r'^layer1\.conv2\.weight has \d+ levels .* 2 bits'
    ):
        freeze(model)


def test_drop_left_on_is_named(quantized):
    model = quantized('conv')
    with (
        dropping(model, drop_prob=0.5),
        pytest.raises(
            RuntimeError,
            match=r'^stem\.input_quantizer: drop_prob is still 0.5',
        ),
    ):
        freeze(model)
    freeze(model)


def test_rounding_under_training_is_refused(quantized):
    model = quantized('conv')
    model.head.start_rounding()
    with pytest.raises(RuntimeError, match='still training its rounding'):
        freeze(model)


def test_learned_zero_points_settle_on_integers(quantized):
    model = quantized(
        'conv',
        activation=dict(
            type='LSQQuantizer', num_bits=4, learn_zero_point=True
        ),
    )
    quantizer = model.layer1.conv1.input_quantizer
    quantizer.offset.data = torch.tensor([2.4])
    quantizer.scale.data = torch.tensor([-1.0])
    freeze(model)
    assert quantizer.offset.tolist() == quantizer.zero_point.tolist() == [2]
    assert quantizer.scale.item() > 0


@pytest.mark.parametrize('most', [1, 1 << 10])
def test_levels_are_counted_by_marks_and_by_sorting(most, monkeypatch):
    module = importlib.import_module('taskptq.reconstruction.freeze')
    monkeypatch.setattr(module, 'MARKED_LEVELS', most)
    codes = torch.tensor([[0, 7, 7, 0], [3, 2, 1, 3], [5, 5, 5, 5]])
    assert module._most_levels(codes) == 3
    assert module._most_levels(codes[:1]) == 2
    assert module._most_levels(codes[2:]) == 1
