"""Tiny networks, quantized and written as ONNX files."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from taskptq.calibration.calibrate import calibrate
from taskptq.prepare import QConfig, prepare
from taskptq.reconstruction.freeze import freeze
from taskptq.testing.models import tiny_batches, tiny_model

pytest.importorskip('onnx', reason='needs taskptq[onnx]')
pytest.importorskip('onnxruntime', reason='needs taskptq[onnx]')


class Depthwise(nn.Module):
    """Convolution, SiLU, depthwise convolution, SiLU, 21 classes."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Conv2d(8, 21, 1)

    def forward(self, x):
        x = nn.functional.silu(self.stem(x))
        x = nn.functional.silu(self.depthwise(x))
        return self.head(x)


def quantize(model, batches, qconfig=None):
    """Prepare, calibrate and freeze a model."""
    prepare(model, QConfig.from_dict(qconfig or {}), batch=batches[0])
    calibrate(model, batches, forward=lambda m, x: m(x))
    freeze(model)
    return model


@pytest.fixture
def exported(tmp_path):
    """Return a function that quantizes and exports a tiny model."""
    from taskptq.export.onnx import export_onnx

    def make(model='conv', *, qconfig=None, batches=None, **options):
        if isinstance(model, str):
            batches = tiny_batches(model)
            model = tiny_model(model)
        model = quantize(model, batches, qconfig)
        path = tmp_path / 'model.onnx'
        report = export_onnx(
            model,
            (batches[0],),
            path,
            input_names=['x'],
            output_names=['y'],
            calibration=[(x,) for x in batches],
            **options,
        )
        return SimpleNamespace(
            model=model, path=path, report=report, x=batches[0]
        )

    return make


@pytest.fixture(name='quantized')
def quantized_fixture():
    """Return the function that quantizes a model."""
    return quantize


@pytest.fixture
def depthwise():
    """Return a network with SiLU and a depthwise convolution, and inputs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Depthwise().eval()
        batches = [torch.randn(2, 3, 12, 12) for _ in range(2)]
        model.stem.weight.data *= torch.logspace(0, 1.5, 8)[
            :, None, None, None
        ]
    return model, batches
