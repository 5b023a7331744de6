import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from taskptq.export.onnx import OnnxExportError, export_onnx
from taskptq.export.onnx.runtime import session
from taskptq.export.onnx.symbolics import window_means


class Pooling(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)
        self.size = size

    def forward(self, x):
        return F.adaptive_avg_pool2d(self.conv(x), self.size)


class Powers(nn.Module):
    def forward(self, x):
        return torch.exp2(x)


def exported(model, x, path, **options):
    names = {'input_names': ['x'], 'output_names': ['y'], **options}
    export_onnx(model, (x,), path, **names)
    (got,) = session(str(path)).run(None, {'x': x.numpy()})
    np.testing.assert_allclose(got, model(x).detach(), atol=1e-6)
    return [node.op_type for node in onnx.load(str(path)).graph.node]


@pytest.mark.parametrize(
    ('size', 'written'),
    [
        (1, 'GlobalAveragePool'),
        ((2, 3), 'AveragePool'),
        (6, 'MatMul'),
        ((3, 5), 'MatMul'),
        ((None, 5), 'MatMul'),
    ],
)
def test_adaptive_pooling_of_any_size(size, written, tmp_path):
    x = torch.rand(2, 3, 8, 9)
    assert written in exported(Pooling(size), x, tmp_path / 'net.onnx')


def test_the_batch_may_stay_open(tmp_path):
    path = tmp_path / 'net.onnx'
    model = Pooling(6)
    x = torch.rand(1, 3, 8, 9)
    exported(model, x, path, dynamic_axes={'x': {0: 'n'}, 'y': {0: 'n'}})
    more = torch.rand(3, 3, 8, 9)
    (got,) = session(str(path)).run(None, {'x': more.numpy()})
    np.testing.assert_allclose(got, model(more).detach(), atol=1e-6)


def test_an_open_size_is_refused(tmp_path):
    with pytest.raises(OnnxExportError, match='fixed input size'):
        exported(
            Pooling(6),
            torch.rand(1, 3, 8, 9),
            tmp_path / 'net.onnx',
            dynamic_axes={'x': {2: 'h'}, 'y': {0: 'n'}},
        )


def test_powers_of_two(tmp_path):
    assert 'Pow' in exported(Powers(), torch.rand(4), tmp_path / 'net.onnx')


@pytest.mark.parametrize(('length', 'bins'), [(8, 6), (7, 7), (5, 8)])
def test_windows_are_those_of_torch(length, bins):
    line = torch.rand(length)
    expected = F.adaptive_avg_pool1d(line[None, None], bins)[0, 0]
    torch.testing.assert_close(window_means(length, bins) @ line, expected)
