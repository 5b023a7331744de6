"""A small frozen model with every kind of quantizer, and its payload."""

import io
import zipfile

import pytest
import torch
from torch import nn

from taskptq.core import (
    LSQQuantizer,
    QuantizerConfig,
    QuantSpec,
    enable,
    observing,
)
from taskptq.core.observers import MinMaxObserver
from taskptq.core.switches import quantizers
from taskptq.export import pack_model
from taskptq.methods.ptq4sam.power_of_two import PowerOfTwoQuantizer
from taskptq.methods.qdetr.alignment import AlignedQuantizer
from taskptq.modules.base import Scheme, quant_modules
from taskptq.modules.linear import QuantLinear


class SmallNet(nn.Module):
    """Two linears, a norm, aligned queries, a softmax; 2-bit weights."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        weight = QuantizerConfig(
            spec=QuantSpec(num_bits=2, symmetric=True), per_channel=True
        )
        activation = QuantizerConfig(
            spec=QuantSpec(num_bits=4),
            quantizer=LSQQuantizer,
            quantizer_kwargs={'learn_zero_point': True},
        )
        scheme = Scheme(weight=weight, activation=activation)
        self.one = QuantLinear.from_float(nn.Linear(6, 8), scheme=scheme)
        self.norm = nn.BatchNorm1d(8)
        self.two = QuantLinear.from_float(nn.Linear(8, 8), scheme=scheme)
        spec = QuantSpec(num_bits=4)
        self.query_quantizer = AlignedQuantizer(
            spec, observer=MinMaxObserver(spec)
        )
        self.softmax_quantizer = PowerOfTwoQuantizer(
            spec, observer=MinMaxObserver(spec), tau=2
        )

    def forward(self, x):
        x = self.two(self.norm(self.one(x)))
        heads = x.view(len(x), 2, 4).transpose(0, 1)  # H x N x C
        return self.softmax_quantizer(self.query_quantizer(heads).softmax(-1))


@torch.no_grad()
def frozen_net():
    model = SmallNet().eval()
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))
    with observing(model):
        model(x)
    for _, quantizer in quantizers(model):
        quantizer.calibrate()
    for _, module in quant_modules(model):
        module.calibrate_weights()
        module.freeze()
    enable(model)
    return model


@pytest.fixture
def new_net():
    """Make a net of the same recipe, not calibrated."""
    return lambda: SmallNet().eval()


@pytest.fixture(scope='session')
def net():
    return frozen_net()


@pytest.fixture
def payload(net):
    recipe = {'qconfig': {'overrides': [], 'weight': {'num_bits': 2}}}
    structure = {'decisions': {'folded': ['one']}, 'products': {'rows': []}}
    return pack_model(
        net, recipe=recipe, meta={'classes': ['a']}, structure=structure
    )


@pytest.fixture
def craft(tmp_path):
    """Write a file of torch.save around any pickle; returns its path."""

    def write(content, *, pickled=None, **extra):
        buffer = io.BytesIO()
        torch.save(content, buffer)
        path = tmp_path / 'crafted.pth'
        compression = extra.get('compression', zipfile.ZIP_STORED)
        with (
            zipfile.ZipFile(buffer) as source,
            zipfile.ZipFile(path, 'w', compression) as out,
        ):
            for name in source.namelist():
                data = source.read(name)
                if name.endswith('data.pkl') and pickled is not None:
                    data = pickled(data) if callable(pickled) else pickled
                out.writestr(name, data)
            for name, data in extra.get('entries', {}).items():
                out.writestr(f'archive/{name}', data)
        return path

    return write
