"""One table (tiny model x qconfig); every row keeps every promise."""

import copy
import functools

import pytest
import torch

from taskptq.calibration import calibrate
from taskptq.core import LSQQuantizer
from taskptq.core.switches import (
    float_only,
    quantizers,
    quantizing,
    transforming,
)
from taskptq.export import load, pack_model, save, unpack_model
from taskptq.methods.ptq4sam.power_of_two import PowerOfTwoQuantizer
from taskptq.methods.qdetr.alignment import AlignedQuantizer
from taskptq.modules.base import quant_modules
from taskptq.prepare import QConfig, prepare
from taskptq.reconstruction import freeze
from taskptq.testing import TINY_MODELS, tiny_batches, tiny_model

MSE = {'type': 'MSEObserver'}
QCONFIGS = {
    'w8a8-minmax': {},
    'w4a8-symmetric-mse': {
        'weight': {'num_bits': 4, 'symmetric': True, 'observer': MSE},
        'activation': {'num_bits': 8, 'symmetric': True, 'observer': MSE},
        'edge_bits': None,
    },
    'w3a3-asymmetric': {
        'weight': {'num_bits': 3, 'symmetric': False},
        'activation': {'num_bits': 3, 'symmetric': False},
    },
    'w2a4-lsq': {
        'weight': {'num_bits': 2, 'symmetric': False, 'observer': MSE},
        'activation': {
            'type': 'LSQQuantizer',
            'num_bits': 4,
            'observer': MSE,
            'learn_zero_point': True,
        },
        'edge_bits': None,
    },
    'w4a4-power-of-two': {
        'weight': {'num_bits': 4},
        'activation': {'num_bits': 4, 'observer': {'type': 'KLObserver'}},
        'softmax': {'type': 'PowerOfTwoQuantizer', 'num_bits': 4, 'tau': 2},
    },
    'w4a4-power-of-two-searched': {
        'weight': {'num_bits': 4},
        'activation': {'type': 'LSQQuantizer', 'num_bits': 4},
        'softmax': {
            'type': 'PowerOfTwoQuantizer',
            'num_bits': 4,
            'observer': {'type': 'AttentionOutputObserver'},
        },
    },
    'w4a4-power-of-two-per-head': {
        'weight': {'num_bits': 4},
        'activation': {'num_bits': 4},
        'softmax': {
            'type': 'PowerOfTwoQuantizer',
            'num_bits': 3,
            'observer': {'type': 'AttentionOutputObserver', 'per_head': True},
        },
    },
    'w4a4-8-per-head': {
        'weight': {'num_bits': 4},
        'activation': {'type': 'LSQQuantizer', 'num_bits': 4},
        'attention': {'num_bits': 8, 'per_head': True, 'observer': MSE},
        'softmax': {'num_bits': 8, 'per_head': True},
    },
    'w4a4-8-aligned': {
        'weight': {'num_bits': 4},
        'activation': {'type': 'LSQQuantizer', 'num_bits': 4},
        'attention': {'num_bits': 8, 'per_head': True},
        'query': {'type': 'AlignedQuantizer', 'observer': MSE},
        'key': {'num_bits': 6, 'per_head': False},
        'softmax': {'num_bits': 8},
    },
    'w4a4-analytic-clip': {
        'weight': {'num_bits': 4, 'observer': {'type': 'ACIQObserver'}},
        'activation': {'num_bits': 4, 'observer': {'type': 'ACIQObserver'}},
    },
    'w4-weight-only': {'weight': {'num_bits': 4}, 'activation': False},
    'w4a6-per-tensor': {
        'weight': {'num_bits': 4, 'per_channel': False},
        'activation': {
            'num_bits': 6,
            'observer': {'type': 'PercentileObserver'},
        },
    },
}
ATTENTION = ('transformer', 'window', 'relative', 'two-way')
HEADED = ('power-of-two', 'per-head', 'aligned')
ROWS = [
    (model, qconfig)
    for model in TINY_MODELS
    for qconfig in QCONFIGS
    if model in ATTENTION or not any(part in qconfig for part in HEADED)
]
every_row = pytest.mark.parametrize(
    ('name', 'qconfig'), ROWS, ids=['-'.join(row) for row in ROWS]
)


def prepared(name, qconfig):
    model = tiny_model(name)
    prepare(model, QConfig.from_dict(QCONFIGS[qconfig]))
    return model


def make_calibrated(name, qconfig):
    torch.manual_seed(0)
    model = prepared(name, qconfig)
    calibrate(model, tiny_batches(name), forward=lambda m, x: m(x))
    return model


@functools.cache
def shared_calibrated(name, qconfig):
    return make_calibrated(name, qconfig)


def calibrated(name, qconfig):
    return copy.deepcopy(shared_calibrated(name, qconfig))


def frozen(name, qconfig):
    model = calibrated(name, qconfig)
    freeze(model)
    return model


def images(name):
    return torch.cat(tiny_batches(name, num_batches=1, seed=7))


@torch.no_grad()
def output(model, name):
    return model(images(name))


def assert_same_tensors(one, two):
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert value.dtype == two[name].dtype, name
        assert torch.equal(value, two[name]), name


def slots_of(model):
    """Yield (counterpart, parameter, quantizer) of all quantized weights."""
    for _, module in quant_modules(model):
        for parameter, _ in module.active_slots():
            quantizer = module.weight_quantizer_of(parameter)
            if quantizer is not None:
                yield module, parameter, quantizer


@every_row
def test_quantizers_off_is_float(name, qconfig):
    expected = output(tiny_model(name), name)
    model = calibrated(name, qconfig)
    limit = 1e-5 * float(expected.abs().max())
    with float_only(model):
        found = output(model, name)
    assert float((found - expected).abs().max()) <= limit
    with quantizing(model):
        found = output(model, name)
    # The switch does something.
    assert float((found - expected).abs().max()) > 10 * limit


def assert_same_but_for_ties(one, two, quantizer, x):
    """torch's kernels multiply by 1 / scale, integer codes divide by it."""
    differs = one != two
    if differs.any():
        scale = quantizer.scale
        if quantizer.spec.ch_axis is not None:
            shape = [1] * x.dim()
            shape[quantizer.spec.ch_axis] = -1
            scale = scale.reshape(shape)
        steps = (x / scale)[differs]
        torch.testing.assert_close(
            steps - steps.floor(),
            torch.full_like(steps, 0.5),
            rtol=0,
            atol=1e-4,
        )
        assert ((one - two).abs() <= 1.001 * scale).all()


@every_row
@torch.no_grad()
def test_quantizing_twice_is_once(name, qconfig):
    model = calibrated(name, qconfig)
    seen = []
    for _, quantizer in quantizers(model):
        quantizer.register_forward_hook(
            lambda q, args, _out: seen.append((q, args[0].detach()))
        )
    with quantizing(model):
        output(model, name)
    assert len({id(q) for q, _ in seen}) >= len(list(slots_of(model)))
    for quantizer, x in seen:
        if quantizer.calibrated:
            once = quantizer.fake_quantize(x)
            assert torch.equal(quantizer.fake_quantize(once), once)
            again = quantizer.dequantize(quantizer.quantize(x))
            assert_same_but_for_ties(again, once, quantizer, x)


@every_row
def test_state_dict_round_trip(name, qconfig):
    model = calibrated(name, qconfig)
    fresh = prepared(name, qconfig)
    fresh.load_state_dict(copy.deepcopy(model.state_dict()))
    assert_same_tensors(fresh.state_dict(), model.state_dict())
    with quantizing(model), quantizing(fresh):
        assert torch.equal(output(fresh, name), output(model, name))


@every_row
def test_same_seed_same_scales(name, qconfig):
    one, two = shared_calibrated(name, qconfig), make_calibrated(name, qconfig)
    assert_same_tensors(one.state_dict(), two.state_dict())
    scales = [q.scale for _, q in quantizers(one) if q.calibrated]
    assert scales
    assert all(bool((scale > 0).all()) for scale in scales)


def memory_of(model):
    tensors = [*model.parameters(), *model.buffers()]
    for _, module in quant_modules(model):
        tensors += module._rounded.values()
    return {t.data_ptr() for t in tensors if t.numel()}


@every_row
def test_deepcopy_shares_nothing(name, qconfig):
    model = calibrated(name, qconfig)
    for module, parameter, _ in slots_of(model):
        module.set_codes(parameter, module.codes(parameter))
    twin = copy.deepcopy(model)
    assert not memory_of(model) & memory_of(twin)
    with quantizing(model):
        expected = output(model, name)
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.detach().zero_()
    with quantizing(twin):
        assert torch.equal(output(twin, name), expected)


@every_row
def test_frozen_weights_are_on_their_grids(name, qconfig):
    model = frozen(name, qconfig)
    slots = list(slots_of(model))
    assert slots
    for module, parameter, quantizer in slots:
        weight, codes = getattr(module, parameter), module.codes(parameter)
        assert torch.equal(quantizer.dequantize(codes), weight)
        assert codes.min() >= quantizer.quant_min
        assert codes.max() <= quantizer.quant_max
        axis = quantizer.spec.ch_axis
        rows = (
            weight.detach()[None]
            if axis is None
            else (weight.detach().transpose(0, axis))
        )
        levels = max(row.unique().numel() for row in rows)
        assert levels <= 2**quantizer.spec.num_bits


@every_row
def test_packed_file_predicts_the_same(name, qconfig, tmp_path):
    model = frozen(name, qconfig)
    payload = pack_model(model, recipe=QCONFIGS[qconfig], meta={})
    save(payload, tmp_path / 'q.pth')
    fresh = prepared(name, qconfig)
    unpack_model(load(tmp_path / 'q.pth'), fresh)
    assert torch.equal(output(fresh, name), output(model, name))
    assert_same_tensors(fresh.state_dict(), model.state_dict())


@every_row
def test_evaluation_is_deterministic(name, qconfig):
    model = frozen(name, qconfig)
    first = output(model, name)
    torch.manual_seed(99)
    assert torch.equal(output(model, name), first)
    assert torch.equal(output(frozen(name, qconfig), name), first)
    assert not any(q.drop_prob for _, q in quantizers(model))


@pytest.mark.parametrize(
    ('qconfig', 'kind'),
    [
        ('w2a4-lsq', LSQQuantizer),
        ('w4a4-power-of-two', PowerOfTwoQuantizer),
        ('w4a4-power-of-two-searched', PowerOfTwoQuantizer),
        ('w4a4-power-of-two-per-head', PowerOfTwoQuantizer),
        ('w4a4-8-aligned', AlignedQuantizer),
    ],
)
@pytest.mark.parametrize('name', ATTENTION)
def test_rows_hold_what_they_say(name, qconfig, kind):
    model = shared_calibrated(name, qconfig)
    assert any(isinstance(q, kind) for _, q in quantizers(model))


@pytest.mark.parametrize('name', ATTENTION)
def test_every_head_has_a_grid(name):
    model = shared_calibrated(name, 'w4a4-power-of-two-per-head')
    for path, quantizer in quantizers(model):
        if path.endswith('softmax_quantizer'):
            heads = model.get_submodule(path.rpartition('.')[0]).num_heads
            assert quantizer.scale.shape == quantizer.tau.shape == (heads,)
            assert quantizer.scale.unique().numel() > 1


@pytest.mark.parametrize('name', ATTENTION)
def test_every_head_has_its_operands_grids(name):
    model = shared_calibrated(name, 'w4a4-8-per-head')
    seen = set()
    for path, quantizer in quantizers(model):
        owner, _, point = path.rpartition('.')
        if not point.startswith(('query', 'key_q', 'value_q', 'softmax')):
            continue
        heads = model.get_submodule(owner).num_heads
        assert quantizer.scale.shape == (heads,)
        assert quantizer.scale.unique().numel() > 1
        seen.add(point)
    assert len(seen) == 4


@pytest.mark.parametrize('name', ATTENTION)
def test_alignment_alone_differs_from_float_and_from_quantized(name):
    model = calibrated(name, 'w4a4-8-aligned')
    outputs = []
    for context in (float_only, transforming, quantizing):
        with context(model):
            outputs.append(output(model, name))
    errors = [float((x - outputs[0]).abs().max()) for x in outputs]
    assert 1e-4 < errors[1] < float(outputs[0].abs().max())
    assert not torch.equal(outputs[1], outputs[2])


@pytest.mark.parametrize('name', TINY_MODELS)
def test_weight_only_leaves_activations_float(name):
    model = shared_calibrated(name, 'w4-weight-only')
    assert all(
        path.endswith('weight_quantizer') for path, _ in quantizers(model)
    )
