"""Prepared tiny models, and how the tests run them."""

import shutil

import pytest
import ranks_worker
import torch

from taskptq.prepare import split_blocks
from taskptq.reconstruction import ReconstructionConfig
from taskptq.reconstruction.capture.cache import ActivationCache
from taskptq.reconstruction.capture.capture import Capturer
from taskptq.reconstruction.capture.tracing import called_modules, trace


def run_model(model, batch):
    return model(batch)


@pytest.fixture
def quick():
    """Settings that train for a moment."""

    def make(**kwargs):
        settings = dict(steps=30, batch_size=4, skip_below=0.0) | kwargs
        return ReconstructionConfig.from_dict(settings)

    return make


@pytest.fixture
def quick_run():
    """A short resumable run."""

    def run(folder, **kwargs):
        return ranks_worker.resumable(folder, **{'steps': 8} | kwargs)

    return run


@pytest.fixture(scope='session')
def first_run(tmp_path_factory):
    """Folder of the states of a short run, and what it ended with."""
    folder = tmp_path_factory.mktemp('finished')
    _, payload = ranks_worker.resumable(folder, steps=8)
    return folder, payload['digest']


@pytest.fixture
def finished(first_run, tmp_path):
    """Put the states of that run into ``tmp_path``; returns the digest."""
    shutil.copytree(first_run[0], tmp_path, dirs_exist_ok=True)
    return first_run[1]


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
def random_images():
    """Seeded batches of images."""

    def make(num_batches=2, batch_size=4, channels=3, size=8):
        generator = torch.Generator().manual_seed(3)
        shape = (batch_size, channels, size, size)
        return [
            torch.randn(shape, generator=generator) for _ in range(num_batches)
        ]

    return make
