"""Prepared tiny models, and how the tests run them."""

import pytest
import torch

from taskptq.calibration import ReconstructionConfig, calibrate
from taskptq.calibration.cache import ActivationCache
from taskptq.calibration.capture import Capturer, called_modules, trace
from taskptq.prepare import QConfig, prepare, split_blocks
from taskptq.testing import tiny_batches, tiny_model


def run_model(model, batch):
    return model(batch)


@pytest.fixture
def forward():
    """The model is called with the batch itself."""
    return run_model


@pytest.fixture
def make_qconfig():
    """Recipe of low-bit weights and learned activation scales."""

    def make(bits=2, activation_bits=8, **kwargs):
        settings = dict(
            weight=dict(num_bits=bits, symmetric=False),
            activation=dict(type='LSQQuantizer', num_bits=activation_bits),
            edge_bits=None,
        )
        return QConfig.from_dict(settings | kwargs)

    return make


@pytest.fixture
def quantized(make_qconfig):
    """Prepare and calibrate a tiny model, or a given module."""

    def make(model='conv', batches=None, **kwargs):
        if isinstance(model, str):
            batches = batches or tiny_batches(model)
            model = tiny_model(model)
        prepare(model.eval(), make_qconfig(**kwargs))
        if batches is not None:
            calibrate(model, batches, forward=run_model)
        return model

    return make


@pytest.fixture
def quick():
    """Settings that train for a moment."""

    def make(**kwargs):
        settings = dict(steps=30, batch_size=4, skip_below=0.0) | kwargs
        return ReconstructionConfig.from_dict(settings)

    return make


@pytest.fixture
def plan():
    """Trace a model into plans; returns a capturer over them."""

    def make(model, batches, scope='block', extra=(), forward=run_model):
        units = split_blocks(
            model,
            scope=scope,
            callable_names=called_modules(model, batches[0], forward=forward),
            extra=extra,
        )
        return Capturer(
            model,
            trace(model, units, batches[0], forward=forward),
            batches,
            forward=forward,
            cache=ActivationCache(1 << 24),
        )

    return make


@pytest.fixture
def count_calls():
    """Count how often a module starts to run."""

    def start(module):
        calls = []
        module.register_forward_pre_hook(lambda *_: calls.append(1))
        return calls

    return start


@pytest.fixture
def random_images():
    """Seeded batches of images."""

    def make(num_batches=2, batch_size=4, channels=3, size=8):
        generator = torch.Generator().manual_seed(3)
        shape = (batch_size, channels, size, size)
        return [
            torch.randn(shape, generator=generator)
            for _ in range(num_batches)
        ]

    return make
