"""What GPTQ would make of each weight, without changing the model."""

import pytest
import torch
from torch import nn

from taskptq.core import float_only
from taskptq.reconstruction.rounding import preview
from taskptq.reconstruction.rounding.gptq import (
    HessianAccumulator,
    gptq_layer,
)
from taskptq.reconstruction.rounding.preview import preview_gptq


def forward(model, batch):
    return model(batch)


def seen(model, batches, **settings):
    return preview_gptq(model, batches, forward=forward, **settings)


class Net(nn.Module):
    """A convolution, a grouped one, a linear layer and an idle one."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.linear = nn.Linear(8, 5)
        self.idle = nn.Linear(8, 5)

    def forward(self, x):
        x = self.depthwise(self.conv(x).relu()).relu()
        return self.linear(x.mean(dim=(2, 3)))


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(3)
    mixing = torch.randn(3, 3, generator=generator)
    images = [torch.randn(6, 3, 10, 10, generator=generator) for _ in 'ab']
    return [torch.einsum('cd,bdhw->bchw', mixing, x) for x in images]


@pytest.fixture
def net(quantized, batches, monkeypatch):
    torch.manual_seed(0)
    model = Net()
    model.full = model.forward
    # Ranges of the idle layer as well.
    monkeypatch.setattr(
        model,
        'forward',
        lambda x: model.full(x) + model.idle(x.mean(3)[:, :1, :8].flatten(1)),
    )
    quantized(model, batches, bits=3)
    monkeypatch.undo()
    return model


def test_weights_are_those_of_gptq_on_float_inputs(net, batches):
    found = seen(net, batches)
    assert set(found) == {
        f'{name}.weight_quantizer' for name in ('conv', 'depthwise', 'linear')
    }
    for name in ('conv', 'depthwise'):
        layer = getattr(net, name)
        moments = HessianAccumulator(layer)
        hook = layer.register_forward_pre_hook(
            lambda _, args, moments=moments: moments.add(args[0])
        )
        with float_only(net):
            for batch in batches:
                net(batch)
        hook.remove()
        codes = gptq_layer(layer, 'weight', moments.hessian())
        quantizer = layer.weight_quantizer_of('weight')
        same = found[f'{name}.weight_quantizer'] == quantizer.dequantize(codes)
        assert same.float().mean() > 0.98  # moments are float32 here


def test_they_leave_less_of_the_outputs_error(net, batches):
    found = seen(net, batches)
    x = torch.cat(batches)
    weight = net.conv.weight.detach()
    quantizer = net.conv.weight_quantizer
    errors = [
        nn.functional.conv2d(x, value - weight).square().sum()
        for value in (
            quantizer.fake_quantize(weight).detach(),
            found['conv.weight_quantizer'],
        )
    ]
    assert errors[1] < 0.8 * errors[0]


def test_the_model_stays_as_it_is(net, batches):
    with torch.no_grad():
        before = net(batches[0])
    seen(net, batches)
    assert not any(
        getattr(net, name).rounded_parameters
        for name in ('conv', 'depthwise', 'linear')
    )
    assert not net.conv._forward_pre_hooks
    with torch.no_grad():
        assert torch.equal(net(batches[0]), before)


def test_layers_that_do_not_fit_together_are_seen_in_turn(
    net, batches, monkeypatch
):
    once = seen(net, batches)
    monkeypatch.setattr(preview, 'MAX_BYTES', 1)
    runs = []

    def counted(model, batch):
        runs.append(batch)
        return model(batch)

    again = preview_gptq(net, batches, forward=counted)
    assert len(runs) == 4 * len(batches)
    assert once.keys() == again.keys()
    assert all(torch.equal(once[name], again[name]) for name in once)


def test_weights_of_more_bits_are_left_out(net, batches):
    assert seen(net, batches, below=3) == {}
