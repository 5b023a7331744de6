"""Layers that calibration did not reach: left float, or refused by name."""

import pytest
import torch
from torch import nn

from taskptq.calibration import calibrate
from taskptq.core.switches import is_weight_quantizer, quantizers, quantizing
from taskptq.export import pack_model, unpack_model
from taskptq.modules import quant_modules
from taskptq.prepare import prepare
from taskptq.reconstruction import freeze
from taskptq.testing import tiny_batches, tiny_model


class Branches(nn.Module):
    """A layer that only training runs, and one that few images reach."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.auxiliary_head = nn.Conv2d(4, 4, 1)
        self.masks = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        found = bool(x.max() > 9)
        x = self.stem(x)
        if self.training:
            return self.auxiliary_head(x)
        return self.masks(x) if found else x


FEW, MANY = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8) + 20


def prepared_branches(make_qconfig, masks=None, **settings):
    model = Branches()
    if masks is not None:
        model.masks = masks
    prepare(model.eval(), make_qconfig(**settings))
    return model


def test_attention_that_never_runs_is_left_float_whole(make_qconfig, forward):
    model = prepared_branches(make_qconfig, nn.MultiheadAttention(4, 2))
    report = calibrate(model, [FEW], forward=forward, unreached='float')
    assert {n for n in report.unobserved if n.startswith('masks.')} == {
        name
        for name, _ in quantizers(model)
        if name.startswith('masks.') and not is_weight_quantizer(name)
    }
    assert 'masks.key_input_quantizer' in report.unobserved
    assert report.left_float['masks'] == report.left_float['masks.out_proj']
    assert not any(
        q.calibrated for n, q in quantizers(model) if n.startswith('masks.')
    )


def test_children_without_quantizers_of_their_own_follow(
    make_qconfig, forward
):
    """An attention owns what its projections read; they stay float too."""
    model = tiny_model('two-way')
    prepare(model, make_qconfig())
    model.forward = lambda *_: torch.zeros(1)
    report = calibrate(
        model, tiny_batches('two-way'), forward=forward, unreached='float'
    )
    assert set(report.left_float) == {n for n, _ in quant_modules(model)}
    assert not any(q.calibrated for _, q in quantizers(model))


def test_what_only_training_runs_stays_float(make_qconfig, forward):
    model = prepared_branches(make_qconfig)
    report = calibrate(model, [MANY], forward=forward)
    assert report.left_float == {'auxiliary_head': 'only training runs it'}
    assert report.unobserved == ['auxiliary_head.input_quantizer']
    assert not model.auxiliary_head.weight_quantizer.calibrated
    assert model.masks.weight_quantizer.calibrated


def test_training_only_part_without_activations(make_qconfig, forward):
    model = prepared_branches(make_qconfig, activation=False)
    report = calibrate(model, [FEW], forward=forward)
    assert set(report.left_float) == {'auxiliary_head'}
    assert not model.auxiliary_head.weight_quantizer.calibrated
    assert model.masks.weight_quantizer.calibrated


def test_training_only_part_that_evaluation_runs_is_quantized(
    make_qconfig, forward
):
    model = nn.Sequential()
    model.add_module('stem', nn.Conv2d(3, 4, 1))
    model.add_module('auxiliary_head', nn.Conv2d(4, 4, 1))
    prepare(model.eval(), make_qconfig())
    report = calibrate(model, [FEW], forward=forward)
    assert report.left_float == {}
    assert model.auxiliary_head.input_quantizer.calibrated


def test_unreached_layer_is_refused_by_name(make_qconfig, forward):
    model = prepared_branches(make_qconfig)
    with pytest.raises(ValueError, match='reached masks: ') as caught:
        calibrate(model, [FEW, FEW], forward=forward)
    for way_out in (
        'more images',
        'score threshold',
        'qconfig.keep_float',
        "calibration.unreached='float'",
    ):
        assert way_out in str(caught.value)
    assert 'auxiliary_head' not in str(caught.value)
    # nothing was decided before the refusal
    assert not any(q.calibrated for _, q in quantizers(model))
    assert calibrate(model, [FEW, MANY], forward=forward).covering == [0, 1]


def test_unreached_layer_is_left_float_where_allowed(make_qconfig, forward):
    model = prepared_branches(make_qconfig)
    expected = model(MANY)
    report = calibrate(model, [FEW], forward=forward, unreached='float')
    assert report.left_float['masks'] == (
        "no calibration image reached it (unreached='float')"
    )
    masks = model.masks
    assert not masks.weight_quantizer.calibrated
    assert masks.weight_quantizer.observer is None
    with quantizing(model):
        assert torch.equal(masks.quantized_weight(), masks.weight)
        x = torch.randn(1, 4, 3, 3)
        assert torch.equal(
            masks(x), masks._conv_forward(x, masks.weight, masks.bias)
        )
    assert torch.equal(model(MANY), expected)


def test_restored_model_leaves_the_same_layers_float(make_qconfig, forward):
    model = prepared_branches(make_qconfig)
    calibrate(model, [FEW], forward=forward, unreached='float')
    freeze(model)
    payload = pack_model(model, recipe={}, meta={})
    assert 'masks.weight' in payload['float']
    assert 'stem.weight' in payload['weights']
    again = prepared_branches(make_qconfig)
    unpack_model(payload, again)
    assert torch.equal(again(MANY), model(MANY))
    assert not again.masks.weight_quantizer.calibrated


def test_many_unreached_layers_are_counted(make_qconfig, forward):
    model = tiny_model('conv')
    prepare(model, make_qconfig())
    model.forward = lambda x: model.stem(x)
    with pytest.raises(ValueError, match=r'layer1\.conv1, .* and 1 more: '):
        calibrate(model, tiny_batches('conv'), forward=forward)


def test_unknown_choice(make_qconfig, forward):
    model = prepared_branches(make_qconfig)
    with pytest.raises(ValueError, match=r"='skip': .*error, float"):
        calibrate(model, [FEW], forward=forward, unreached='skip')
