import copy

import pytest
import torch
from wild_net import PlainAdapter

from taskptq.core import quantizing
from taskptq.methods.sparsity import sparsify
from taskptq.modules.base import quant_modules
from taskptq.prepare.sparsity import SparsityConfig
from taskptq.reconstruction import ReconstructionConfig, reconstruct


def masks(model):
    return {
        name: module.weight_quantizer.mask
        for name, module in quant_modules(model)
        if hasattr(module, 'weight_quantizer')
    }


@pytest.mark.parametrize('allocation', ['uniform', 'erk', 'l2', 'learned'])
def test_the_rate_is_exact_and_the_dense_model_stays(swapped, allocation):
    model, batches = swapped()
    with torch.no_grad():
        dense = model(batches[0])
    config = SparsityConfig(rate=0.61, allocation=allocation, steps=2)
    report = sparsify(model, config, batches=batches, adapter=PlainAdapter())
    assert report.zeros == round(0.61 * report.prunable)
    found = [m for m in masks(model).values() if m is not None]
    assert sum(int((~m).sum()) for m in found) == report.zeros
    with torch.no_grad():
        assert torch.equal(model(batches[0]), dense)
        with quantizing(model):
            assert not torch.allclose(model(batches[0]), dense)


def test_a_pattern_leaves_other_layers_dense(swapped):
    model, batches = swapped()
    report = sparsify(model, SparsityConfig(pattern='2:4'), batches=batches)
    assert 2 * report.zeros == report.prunable
    assert any('do not divide into 2:4' in r for r in report.dense.values())
    with pytest.raises(ValueError, match='no layer has input channels'):
        sparsify(model, SparsityConfig(pattern='5:97'), batches=batches)


def test_rates_that_cannot_be_learned_fall_back(swapped, caplog):
    class Broken:
        def forward_heads(self, model, batch):
            raise RuntimeError('no outputs')

    model, batches = swapped()
    config = SparsityConfig(rate=0.5, allocation='learned', steps=2)
    report = sparsify(model, config, batches=batches, adapter=Broken())
    assert report.fallback == 'no outputs'
    assert "allocation='l2'" in caplog.text
    assert report.zeros == round(0.5 * report.prunable)
    for _, module in quant_modules(model):
        assert not module.roundings


def test_weights_that_are_not_finite_are_refused(swapped):
    model, batches = swapped()
    name, module = quant_modules(model)[1]
    module.weight.data.view(-1)[0] = float('nan')
    with pytest.raises(ValueError, match=f'{name}.weight holds NaN'):
        sparsify(model, SparsityConfig(rate=0.5), batches=batches)


def test_float_units_resume_if_the_masks_are_the_same(swapped, tmp_path):
    model, batches = swapped()
    first, again, other = (copy.deepcopy(model) for _ in range(3))
    config = ReconstructionConfig(
        start='gptq',
        match_float=True,
        latent_weights=True,
        learn_scales=False,
        drop_prob=0.0,
        steps=3,
    )
    resumed = []
    for one, rate in ((first, 0.5), (again, 0.5), (other, 0.6)):
        sparsify(one, SparsityConfig(rate=rate), batches=batches)
        report = reconstruct(
            one,
            batches,
            config,
            forward=lambda m, batch: m(batch),
            state_dir=tmp_path,
            progress=False,
        )
        resumed.append(report.resumed_units)
    assert resumed == [0, len(report.units), 0]
    layers = [dict(quant_modules(one)) for one in (first, again)]
    for name in layers[0]:
        codes = [found[name].codes('weight') for found in layers]
        assert torch.equal(*codes), name
