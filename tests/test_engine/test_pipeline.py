"""One function quantizes; one rebuilds what it wrote."""

import copy
import json

import pytest
import torch

from taskptq.engine.pipeline import (
    STATE_DIR,
    Recipe,
    quantize_model,
    restore_model,
)
from taskptq.export.checkpoint import QuantizedCheckpointError, load
from taskptq.registry import RECON_LOSSES, REWRITES


@pytest.fixture
def model(tiny_path):
    import importlib
    return importlib.import_module('tiny_task').TinyNet()


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(3)
    return [{'inputs': list(torch.randn(4, 3, 8, 8, generator=generator)),
             'labels': [0] * 4} for _ in range(2)]


def logits(model, batch):
    with torch.no_grad():
        return torch.stack([p['logits'] for p in model.test_step(batch)])


def test_quantize_and_restore(model, batches, qconfig, tmp_path):
    other = copy.deepcopy(model)
    model.train()
    report = quantize_model(
        model, batches, recipe=Recipe.from_config(qconfig),
        work_dir=tmp_path, meta={'dataset_meta': {'classes': ('a', 'b')}})
    assert not any(m.training for m in model.modules())
    assert json.loads(
        (tmp_path / 'quantization_report.json').read_text()) == report
    payload = load(tmp_path / 'quantized.pth')
    assert payload['meta']['dataset_meta'] == {'classes': ['a', 'b']}
    recipe = restore_model(payload, other)
    assert recipe['qconfig'] == report['recipe']['qconfig']
    for batch in batches:
        assert torch.equal(logits(model, batch), logits(other, batch))


def test_global_random_state_is_left_alone(model, batches, qconfig, tmp_path):
    settings = dict(steps=3, batch_size=2)
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    quantize_model(
        model, batches, work_dir=tmp_path,
        recipe=Recipe.from_config(qconfig, reconstruction=settings))
    assert torch.equal(torch.rand(3), expected)


def test_interrupted_run_goes_on(model, batches, qconfig, tmp_path,
                                 monkeypatch):
    """Stopped after a unit and started again: the same file."""
    from taskptq.calibration.resume import UnitStates
    recipe = Recipe.from_config(
        qconfig, reconstruction=dict(scope='layer', steps=4, batch_size=2))
    whole = quantize_model(
        copy.deepcopy(model), batches, recipe=recipe,
        work_dir=tmp_path / 'whole')
    save = UnitStates.save

    def save_and_stop(self, index, *args):
        save(self, index, *args)
        if index == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(UnitStates, 'save', save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        quantize_model(
            copy.deepcopy(model), batches, recipe=recipe,
            work_dir=tmp_path / 'cut')
    assert (tmp_path / 'cut' / STATE_DIR).is_dir()
    monkeypatch.undo()
    again = quantize_model(
        copy.deepcopy(model), batches, recipe=recipe,
        work_dir=tmp_path / 'cut')
    assert again['reconstruction']['resumed_units'] == 2
    assert again['digest'] == whole['digest']
    assert not (tmp_path / 'cut' / STATE_DIR).exists()


def test_a_rewrite_runs_first(model, batches, qconfig, tmp_path,
                              registry_guard):

    @REWRITES.register_module()
    class Recorder:

        def __call__(self, model, stats):
            stats.forward(model, stats.batches[0])
            return {'norms': isinstance(model.bn1, torch.nn.BatchNorm2d)}

    report = quantize_model(
        model, batches, work_dir=tmp_path,
        recipe=Recipe.from_config(qconfig, rewrites=[dict(type='Recorder')]))
    assert report['rewrites'] == [{'norms': True}]
    assert report['recipe']['rewrites'] == [{'type': 'Recorder'}]


@pytest.mark.parametrize('where', ['reconstruction', 'loss'])
def test_own_loss_is_used(model, batches, qconfig, tmp_path, where,
                          registry_guard):
    seen = []

    @RECON_LOSSES.register_module()
    class CountingLoss:

        def __call__(self, quant_out, float_out, context):
            seen.append(context.step)
            return (quant_out - float_out).square().mean()

    loss = dict(type='CountingLoss')
    settings = dict(scope='layer', steps=2, batch_size=2)
    if where == 'reconstruction':
        recipe = Recipe.from_config(
            qconfig, reconstruction=dict(settings, loss=loss))
    else:
        recipe = Recipe.from_config(
            qconfig, reconstruction=settings, loss=loss)
    report = quantize_model(model, batches, recipe=recipe, work_dir=tmp_path)
    assert {0, 1} <= set(seen)
    assert report['recipe']['loss'] == loss


def test_network_scope_uses_the_adapter(model, batches, qconfig, tmp_path):
    settings = dict(scope='network', steps=2)
    report = quantize_model(
        model, batches, work_dir=tmp_path,
        recipe=Recipe.from_config(qconfig, reconstruction=settings))
    assert len(report['reconstruction']['units']) == 1


def test_refusals(model, batches, qconfig, tmp_path):
    with pytest.raises(ValueError, match='without reconstruction'):
        Recipe.from_config(qconfig, loss=dict(type='MSEReconLoss'))
    with pytest.raises(ValueError, match='stepz'):
        Recipe.from_config(qconfig, reconstruction=dict(stepz=3))
    recipe = Recipe.from_config(qconfig)
    quantize_model(model, batches, recipe=recipe, work_dir=tmp_path)
    with pytest.raises(RuntimeError, match='quantized already'):
        quantize_model(model, batches, recipe=recipe, work_dir=tmp_path)
    with pytest.raises(RuntimeError, match='quantized already'):
        restore_model(load(tmp_path / 'quantized.pth'), model)


def test_pattern_of_another_model_is_a_misfit(model, batches, qconfig,
                                              tmp_path):
    recipe = Recipe.from_config(dict(qconfig, keep_float=['body.3']))
    quantize_model(model, batches, recipe=recipe, work_dir=tmp_path)
    with pytest.raises(QuantizedCheckpointError, match=r'body\.3'):
        restore_model(
            load(tmp_path / 'quantized.pth'),
            torch.nn.Sequential(torch.nn.Linear(3, 3)))
