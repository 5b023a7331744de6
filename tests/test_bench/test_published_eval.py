"""The faults of published evaluation, on request only."""

import copy
import importlib
import json

import pytest
import torch

from taskptq.bench.published_eval import (
    SoftRoundings,
    leave_as_published,
    quantize_as_published,
)
from taskptq.calibration import calibrate
from taskptq.core.switches import is_weight_quantizer, quantizers
from taskptq.engine.pipeline import quantize_model
from taskptq.engine.recipe import Recipe
from taskptq.export import QuantizedCheckpointError, pack_model
from taskptq.modules.base import quant_modules
from taskptq.prepare import QConfig, prepare, split_blocks
from taskptq.reconstruction import ReconstructionConfig, freeze, reconstruct
from taskptq.testing import tiny_batches, tiny_model

SETTINGS = dict(steps=3, batch_size=2, skip_below=0.0)


def run_model(model, batch):
    return model(batch)


def reconstructed(name='conv', *, on_trained=None, **kwargs):
    torch.manual_seed(0)
    model, batches = tiny_model(name), tiny_batches(name)
    prepare(
        model,
        QConfig.from_dict(
            dict(
                weight=dict(num_bits=2, symmetric=False),
                activation=dict(type='LSQQuantizer', num_bits=4),
                edge_bits=None,
            )
        ),
    )
    calibrate(model, batches, forward=run_model)
    settings = (
        dict(steps=10, batch_size=4, weight_lr=0.05, skip_below=0.0) | kwargs
    )
    reconstruct(
        model,
        batches,
        ReconstructionConfig.from_dict(settings),
        forward=run_model,
        progress=False,
        on_trained=on_trained,
    )
    return model


@pytest.fixture(scope='module')
def published():
    """A model in that state, its report, and the one to compare with."""
    soft = SoftRoundings()
    model = reconstructed(on_trained=soft)
    twin = copy.deepcopy(model)
    report = leave_as_published(model, soft)
    freeze(twin)
    return model, report, twin


def off_grid(module):
    """How far a layer's weight is from its grid at most, in steps."""
    quantizer = module.weight_quantizer_of('weight')
    weight = module.quantized_weight().detach()
    gap = (quantizer.dequantize(quantizer.quantize(weight)) - weight).abs()
    scale = quantizer.scale.reshape(-1, *[1] * (weight.dim() - 1))
    return float((gap / scale).max())


def test_only_input_quantizers_drop(published):
    model, report, _ = published
    drops = {name: q.drop_prob for name, q in quantizers(model)}
    assert set(report['dropping']) == {n for n, p in drops.items() if p}
    for name, drop in drops.items():
        expected = 0.5 if name.endswith('input_quantizer') else 0.0
        assert drop == expected, name
    assert all(q.enabled for _, q in quantizers(model))


def test_matmul_quantizers_do_not_drop():
    soft = SoftRoundings()
    model = reconstructed('transformer', on_trained=soft)
    leave_as_published(model, soft)
    points = {
        name.rpartition('.')[2]: q.drop_prob
        for name, q in quantizers(model)
        if q.calibrated and not is_weight_quantizer(name)
    }
    assert points == {
        'input_quantizer': 0.5,
        'query_quantizer': 0.0,
        'key_quantizer': 0.0,
        'softmax_quantizer': 0.0,
        'value_quantizer': 0.0,
    }


@torch.no_grad()
def test_only_the_first_layer_of_a_unit_is_hard(published):
    model, report, twin = published
    hard, soft = set(), set()
    for unit in split_blocks(model):
        names = [name for name, _ in unit.layers()]
        hard.add(names[0])
        soft.update(names[1:])
    assert set(report['soft_layers']) == soft
    assert {'layer1.conv2', 'layer2.conv2'} <= soft
    assert {'layer1.conv1', 'stem', 'head'} <= hard
    frozen = dict(quant_modules(twin))
    for name, module in quant_modules(model):
        if name in soft:
            assert off_grid(module) > 0.05, name
        else:
            assert off_grid(module) < 1e-5, name
            assert torch.equal(module.quantized_weight(), frozen[name].weight)
    assert 0.3 < report['off_grid'] <= 1


@torch.no_grad()
def test_outputs_are_random_and_wrong(published):
    model, _, twin = published
    x = tiny_batches('conv')[0]
    torch.manual_seed(0)
    first = model(x)
    assert not torch.equal(model(x), first)
    torch.manual_seed(0)
    assert torch.equal(model(x), first)
    assert torch.equal(twin(x), twin(x))
    assert not torch.allclose(twin(x), first, rtol=1e-3)


def test_cannot_be_frozen_or_packed(published):
    model = copy.deepcopy(published[0])
    with pytest.raises(QuantizedCheckpointError, match='not frozen'):
        pack_model(model, recipe={}, meta={})
    with pytest.raises(RuntimeError, match=r'drop_prob is still 0\.5'):
        freeze(model)
    for _, quantizer in quantizers(model):
        quantizer.drop_prob = 0.0
    with pytest.raises(RuntimeError, match='still training its rounding'):
        freeze(model)


def test_collecting_changes_nothing_else(published):
    plain = reconstructed()
    freeze(plain)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, published[2].state_dict()[name]), name


@pytest.mark.parametrize('rounding', ['nearest', 'gptq'])
def test_needs_learned_roundings(rounding):
    soft = SoftRoundings()
    model = reconstructed(on_trained=soft, rounding=rounding)
    with pytest.raises(ValueError, match='needs learned roundings'):
        leave_as_published(model, soft)
    freeze(model)


@pytest.fixture
def net(tiny_path):
    torch.manual_seed(0)
    return importlib.import_module('tiny_task').TinyNet()


@pytest.fixture
def net_batches():
    generator = torch.Generator().manual_seed(3)
    return [
        {
            'inputs': list(torch.randn(4, 3, 8, 8, generator=generator)),
            'labels': [0] * 4,
        }
        for _ in range(2)
    ]


def test_it_is_marked_and_writes_no_model(net, net_batches, qconfig, tmp_path):
    recipe = Recipe.from_config(qconfig, reconstruction=SETTINGS)
    report = quantize_as_published(
        net, net_batches, recipe=recipe, work_dir=tmp_path
    )
    written = json.loads((tmp_path / 'published_eval_report.json').read_text())
    assert written == report
    assert report['published_eval']['dropping']
    assert {'freeze', 'file_bytes', 'checkpoint', 'digest'}.isdisjoint(report)
    assert not list(tmp_path.rglob('*.pth'))
    with torch.no_grad():
        one, two = (net.test_step(net_batches[0]) for _ in range(2))
    assert any(
        not torch.equal(a['logits'], b['logits'])
        for a, b in zip(one, two, strict=True)
    )
    with pytest.raises(RuntimeError, match='quantized already'):
        quantize_as_published(
            net, net_batches, recipe=recipe, work_dir=tmp_path
        )


def test_nothing_else_does_it(net, net_batches, qconfig, tmp_path):
    recipe = Recipe.from_config(qconfig, reconstruction=SETTINGS)
    report = quantize_model(net, net_batches, recipe=recipe, work_dir=tmp_path)
    assert 'published_eval' not in report
    assert report['freeze']['num_weights']


@pytest.mark.parametrize('settings', [None, dict(SETTINGS, rounding='gptq')])
def test_refuses_recipes_without_learned_rounding(
    net, net_batches, qconfig, tmp_path, settings
):
    recipe = Recipe.from_config(qconfig, reconstruction=settings)
    with pytest.raises(ValueError, match='learned roundings'):
        quantize_as_published(
            net, net_batches, recipe=recipe, work_dir=tmp_path
        )
