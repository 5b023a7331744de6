"""Files of a wished size, from the recipe's name to the bytes on disk."""

import json

import pytest
import torch
from torch import nn

import taskptq
from taskptq.core.settings import SettingError
from taskptq.engine.size_step import num_values, rounded
from taskptq.export import load, unpack_codes
from taskptq.export.size_report import size_report
from taskptq.recipes.names import parse, resolve


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Conv2d(24, 48, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(48, 48, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(48, 5, 1),
    ).eval()


def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 3, 8, 8, generator=generator) for _ in range(2)]


@pytest.mark.parametrize('ratio', [6, 9])
def test_the_file_is_as_small_as_asked(tmp_path, ratio):
    model, out = net(), tmp_path / 'q.pth'
    values = num_values(model)
    before = model(batches()[0])
    _, report = taskptq.quantize(
        model, batches(), recipe=f'w8a8_size{ratio}x', out=out
    )
    limit = 4 * values // ratio
    assert report['size']['limit_bytes'] == limit
    assert 0.85 * limit < out.stat().st_size <= limit
    layers = report['size']['layers']
    assert set(layers) == {f'{i}.weight_quantizer' for i in (0, 3, 5, 7)}
    assert json.dumps(report['size'])
    # A tenth of the bits leaves most of the signal.
    error = (model(batches()[0]) - before).square().mean()
    assert error < 0.05 * before.var()
    payload = load(out)
    assert payload['recipe']['qconfig']['size']['ratio'] == ratio
    assert size_report(out).of_kind('weights').codec == 'rans'


def test_bits_go_where_errors_cost(tmp_path):
    model = net()
    with torch.no_grad():
        # The outputs hardly depend on what half of these read.
        model[5].weight.mul_(0.01)
        model[3].weight.mul_(3)
    _, report = taskptq.quantize(
        model, batches(), recipe='w8a8_size8x', work_dir=tmp_path
    )
    layers = report['size']['layers']
    gains = {name: row['gain'] for name, row in layers.items()}
    assert gains['5.weight_quantizer'] > gains['3.weight_quantizer']
    steps = {name: row['step'] for name, row in layers.items()}
    assert steps['5.weight_quantizer'] < steps['3.weight_quantizer']


def test_dear_codes_are_avoided(tmp_path):
    """Rounding weighs a code's bits: zeros are more frequent than nearest."""
    model, out = net(), tmp_path / 'q.pth'
    whole = model[5].weight.detach().clone()
    _, report = taskptq.quantize(
        model,
        batches(),
        recipe=['w8a8_size9x', {'reconstruction': {'match_float': False}}],
        out=out,
    )
    entry = load(out)['weights']['5.weight']
    codes = unpack_codes(
        entry['packed'],
        num_bits=entry['num_bits'],
        quant_min=entry['quant_min'],
        shape=entry['shape'],
    )
    step = report['size']['layers']['5.weight_quantizer']['step']
    nearest = (whole / step).round()
    assert (codes == 0).sum() > (nearest == 0).sum()


def test_impossible_sizes_are_refused_before_the_work():
    with pytest.raises(SettingError, match=r'bytes are not weights'):
        taskptq.quantize(net(), batches(), recipe='w8a8_size100x')
    changed = {'qconfig': {'weight': {'per_channel': True}}}
    with pytest.raises(SettingError, match='one symmetric grid per tensor'):
        taskptq.quantize(net(), batches(), recipe=['w8a8_size8x', changed])
    mixed = {'mixed_precision': {'keep': 0.99}}
    with pytest.raises(SettingError, match='does not go with mixed'):
        taskptq.quantize(net(), batches(), recipe=['w8a8_size8x', mixed])


def test_names():
    assert parse('w8a8_size10x').method_file == 'size'
    assert parse('w8a8_sparse70_size12.5x').ratio == 12.5
    assert parse('w8a8_sparse70_size12.5x').sparsity == {'rate': 0.7}
    recipe = resolve('w4a8_qdrop_size10x')
    assert recipe['qconfig']['size'] == {'ratio': 10.0}
    assert recipe['qconfig']['weight']['per_channel'] is False
    for name in ('sparse70_size10x', 'w8a8_size10x_size10x'):
        with pytest.raises(SettingError, match='give bits'):
            parse(name)


@pytest.mark.parametrize('method', ['size-trained', 'qdrop'])
def test_training_keeps_to_the_size(tmp_path, method):
    model, out = net(), tmp_path / 'q.pth'
    few = {'steps': 20}
    if method == 'size-trained':
        few = {'network_steps': 20, 'network': {'keep_better': False}}
    _, report = taskptq.quantize(
        model,
        batches(),
        recipe=[f'w8a8_{method}_size9x', {'reconstruction': few}],
        out=out,
    )
    limit = report['size']['limit_bytes']
    assert 0.8 * limit < out.stat().st_size <= limit
    unit = report['reconstruction']['units'][-1]
    assert unit['steps'] == 20
    assert unit['turned'] > 0


def test_floats_keep_the_bits_of_half_precision(tmp_path):
    model, out = net(), tmp_path / 'q.pth'
    taskptq.quantize(model, batches(), recipe='w8a8_size9x', out=out)
    biases = [m.bias for m in model if isinstance(m, nn.Conv2d)]
    assert len(biases) == 4
    for bias in biases:
        fraction, _ = torch.frexp(bias.detach())
        assert torch.equal(fraction * 2**11, (fraction * 2**11).round())
    stored = load(out)['float']
    assert any(torch.equal(v, biases[0]) for v in stored.values())


@pytest.mark.parametrize('magnitude', [1e-30, 1.0, 1e30])
def test_rounding_keeps_any_magnitude(magnitude):
    torch.manual_seed(0)
    value = magnitude * torch.randn(1000)
    error = (rounded(value) / value - 1).abs().max()
    assert 2**-13 < float(error) <= 2**-11
    assert rounded(torch.zeros(2)).tolist() == [0, 0]


def test_the_estimate_knows_that_biases_change(tmp_path):
    """Biases of zeros code well before the reconstruction, not after it."""
    model, out = net(), tmp_path / 'q.pth'
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, nn.Conv2d):
                layer.bias.zero_()
    _, report = taskptq.quantize(
        model, batches(), recipe='w8a8_size9x', out=out
    )
    assert out.stat().st_size <= report['size']['limit_bytes']
