"""A small quantized net with attention, and its payload."""

import torch
from torch import nn

from taskptq.core import (
    LSQQuantizer,
    MSEObserver,
    QuantizerConfig,
    QuantSpec,
    enable,
    observing,
)
from taskptq.core.switches import quantizers
from taskptq.export import (
    pack_model,
)
from taskptq.methods.ptq4sam.power_of_two import PowerOfTwoQuantizer
from taskptq.modules.base import Scheme, quant_modules
from taskptq.modules.conv import QuantConv2d, QuantConvTranspose2d
from taskptq.modules.linear import QuantLinear

RECIPE = {'qconfig': {'weight': {'num_bits': 4}}, 'seed': 3, 'names': ('a',)}
META = {'classes': ['cell', 'dot'], 'ratio': 0.5, 'none': None}


def scheme(num_bits=4, *, symmetric=True, learned=False):
    activation = QuantizerConfig(
        spec=QuantSpec(num_bits=8),
        quantizer=LSQQuantizer,
        quantizer_kwargs={'learn_zero_point': learned},
    )
    weight = QuantizerConfig(
        spec=QuantSpec(num_bits=num_bits, symmetric=symmetric),
        per_channel=True,
        observer=MSEObserver,
    )
    return Scheme(weight=weight, activation=activation)


class Net(nn.Module):
    """Conv, norm, deconv, a shared head seen under two names, a softmax."""

    def __init__(self, recipe, *, width=8, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.body = QuantConv2d.from_float(
            nn.Conv2d(width, width, 3, padding=1), scheme=recipe
        )
        self.norm = nn.BatchNorm2d(width)
        self.up = QuantConvTranspose2d.from_float(
            nn.ConvTranspose2d(width, 5, 2, stride=2), scheme=recipe
        )
        head = QuantLinear.from_float(nn.Linear(5, 3), scheme=recipe)
        self.heads = nn.ModuleList([head, head])
        self.unused = QuantLinear.from_float(nn.Linear(5, 4), scheme=recipe)
        self.softmax_quantizer = PowerOfTwoQuantizer(
            QuantSpec(num_bits=4),
            observer=MSEObserver(QuantSpec(num_bits=4)),
            tau=2,
        )

    def forward(self, x):
        x = self.norm(self.body(self.stem(x).relu()))
        x = self.up(x).mean(dim=(2, 3))
        x = self.heads[0](x) + self.heads[1](x * 2)
        return self.softmax_quantizer(x.softmax(dim=-1))


def batch():
    generator = torch.Generator().manual_seed(5)
    return torch.randn(4, 3, 8, 8, generator=generator)


@torch.no_grad()
def quantized_net(recipe=None, **kwargs):
    model = Net(recipe or scheme(), **kwargs)
    model(batch())  # moves the norm's statistics away from their start
    model.eval()
    with observing(model):
        model(batch())
    for _, quantizer in quantizers(model):
        quantizer.calibrate()
    for _, module in quant_modules(model):
        module.calibrate_weights()
        module.freeze()
    enable(model)
    return model


def payload_of(model):
    return pack_model(model, recipe=RECIPE, meta=META)
