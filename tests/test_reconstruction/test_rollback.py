"""Steps on the network are undone unless the loss fell."""

import pytest
import torch

from taskptq.modules.base import quant_modules
from taskptq.prepare.blocks import Unit
from taskptq.reconstruction import (
    MSEReconLoss,
    reconstruct,
)
from taskptq.reconstruction.network import NetworkData
from taskptq.reconstruction.rollback import Snapshot, keep_better
from taskptq.reconstruction.rounding.learned import UnitResult
from taskptq.testing import tiny_batches


class Adapter:
    def forward_heads(self, model, batch):
        scores = model(batch)
        return {'cls': scores[:, :2], 'reg': scores[:, 2:]}


def codes_of(model):
    return {name: module.codes() for name, module in quant_modules(model)}


@pytest.mark.parametrize(
    ('scope', 'harmful'), [('block', True), ('network', False)]
)
def test_keep_better(
    quantized, quick, forward, caplog, tmp_path, scope, harmful
):
    """Steps that raise the loss of the set leave no trace."""
    batches = tiny_batches('conv', num_batches=3, batch_size=4)
    before = quantized('conv', batches, bits=2)
    if scope == 'block':
        reconstruct(
            before, batches, quick(steps=3), forward=forward, progress=False
        )
    model = quantized('conv', batches, bits=2)
    own = {
        'keep_better': True,
        'drop_prob': 0.0,
        'straight_through': True,
        'weight_lr': 0.1,
        'scale_lr': 1e-3,
    }
    settings = {'steps': 3, 'network_steps': 60, 'network': own}
    if scope == 'network':
        settings = {'scope': 'network', 'steps': 60, **own}
    report = reconstruct(
        model,
        batches,
        quick(**settings),
        forward=forward,
        loss=backwards if harmful else MSEReconLoss(),
        adapter=Adapter(),
        progress=False,
        state_dir=tmp_path,
    )
    result = report.units[-1]
    assert result.set_loss_start == pytest.approx(set_error(before, batches))
    assert result.taken_back is harmful
    assert (result.set_loss_end > result.set_loss_start) is harmful
    told = [r for r in caplog.records if 'undone' in r.getMessage()]
    assert len(told) == harmful
    if harmful:
        assert report.flipped == 0
        assert same_state(model, before)
    else:
        assert set_error(model, batches) == pytest.approx(result.set_loss_end)
        assert not same_state(model, before)
    # an interrupted run goes on from what was kept
    again = quantized('conv', batches, bits=2)
    reconstruct(
        again,
        batches,
        quick(**settings),
        forward=forward,
        loss=backwards if harmful else MSEReconLoss(),
        adapter=Adapter(),
        progress=False,
        state_dir=tmp_path,
    )
    assert same_state(again, model)


def backwards(quant_out, float_out, context):
    """An error whose gradient points the wrong way."""
    error = MSEReconLoss()(quant_out, float_out, context)
    return -error if torch.is_grad_enabled() else error


def set_error(model, batches):
    """Mean error of the heads, images weighing alike."""
    data = NetworkData(model, batches, Adapter())
    loss = MSEReconLoss()
    return sum(
        float(loss(data.run_quantized(number), target, None))
        for number, target in enumerate(data.targets)
    ) / len(batches)


def same_state(a, b):
    ranges = [
        {
            name: value
            for name, value in model.state_dict().items()
            if 'quantizer' in name
        }
        for model in (a, b)
    ]
    return all(
        torch.equal(codes_of(a)[name], codes)
        for name, codes in codes_of(b).items()
    ) and all(
        torch.equal(ranges[0][name], value)
        for name, value in ranges[1].items()
    )


@pytest.mark.parametrize(
    ('after', 'kept'), [(0.5, True), (1.0, False), (2.0, False)]
)
def test_only_a_loss_that_fell_is_kept(quantized, after, kept):
    """One that stayed the same is no reason for other codes."""
    model = quantized('conv', bits=2)
    unit = Unit('layer1', model.layer1)
    conv = model.layer1.conv1
    before, snapshot = conv.codes().clone(), Snapshot(unit)
    scale = conv.input_quantizer.scale.detach().clone()
    trained = before.roll(1, 0)
    conv.set_codes('weight', trained)
    with torch.no_grad():
        conv.input_quantizer.scale.mul_(2)
    losses = iter([after, 1.0])
    result = UnitResult(name='layer1', steps=4)
    keep_better(unit, result, before=snapshot, measure=lambda: next(losses))
    assert (result.set_loss_start, result.set_loss_end) == (1.0, after)
    assert result.taken_back is not kept
    assert torch.equal(conv.codes(), trained if kept else before)
    assert not torch.equal(trained, before)
    factor = 2 if kept else 1
    assert torch.equal(conv.input_quantizer.scale, factor * scale)
