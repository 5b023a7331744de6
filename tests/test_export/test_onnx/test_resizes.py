import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import nn

from taskptq.export.onnx.resizes import float_resizes
from taskptq.export.onnx.runtime import session

from .test_graph import graph_of


class Twice(nn.Module):
    """A map that is enlarged twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.first(x).relu()
        for _ in range(2):
            x = nn.functional.interpolate(x, scale_factor=2, mode='bilinear')
        return self.last(x)


class Pyramid(nn.Module):
    """Maps of three sizes, enlarged and added."""

    def __init__(self, mode):
        super().__init__()
        self.mode = mode
        self.layers = nn.ModuleList(
            nn.Conv2d(3 if i == 0 else 8, 8, 3, stride=2, padding=1)
            for i in range(3)
        )
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        maps = []
        for layer in self.layers:
            x = layer(x).relu()
            maps.append(x)
        for i in (1, 0):
            options = (
                {} if self.mode == 'nearest' else {'align_corners': False}
            )
            maps[i] = maps[i] + nn.functional.interpolate(
                maps[i + 1],
                size=maps[i].shape[-2:],
                mode=self.mode,
                **options,
            )
        return self.last(maps[0])


def optimized(path, tmp_path):
    saved = tmp_path / 'optimized.onnx'
    session(str(path), save=saved)
    return onnx.load(str(saved)).graph.node


INTEGER = ('QuantizeLinear', 'QLinearConv', 'QLinearAdd', 'MaxPool')


def interpolates_floats(nodes):
    """For each Resize, whether it reads floats."""
    makers = {name: node.op_type for node in nodes for name in node.output}
    return [
        makers[node.input[0]] not in INTEGER
        for node in nodes
        if node.op_type == 'Resize'
    ]


@pytest.mark.parametrize(
    'mode',
    ['bilinear', 'nearest'],
)
def test_interpolation_is_not_rounded_down(exported, tmp_path, mode):
    torch.manual_seed(0)
    batches = [torch.randn(2, 3, 32, 48)]
    found = exported(Pyramid(mode).eval(), batches=batches)
    nodes = optimized(found.path, tmp_path)
    assert interpolates_floats(nodes) == [mode == 'bilinear'] * 2
    assert found.report.checks['float_layers'] == []


def test_the_error_of_enlarged_maps_has_no_drift(exported):
    torch.manual_seed(0)
    batches = [torch.randn(4, 3, 32, 48)]
    found = exported(Pyramid('bilinear').eval(), batches=batches)
    feed = {'x': found.x.numpy()}
    plain = session(str(found.path), optimize=False).run(None, feed)[0]
    fast = session(str(found.path)).run(None, feed)[0]
    # Rounding down shifts all values of a map to one side.
    error = fast - plain
    assert np.abs(error.mean((0, 2, 3))).max() < 0.02 * plain.std()


@pytest.mark.parametrize('deploy', [None, 'onnxruntime'])
@pytest.mark.parametrize('bits', [8, 4])
def test_maps_that_are_enlarged_twice(exported, tmp_path, bits, deploy):
    torch.manual_seed(0)
    qconfig = {'activation': {'num_bits': bits}, 'deploy': deploy}
    batches = [torch.randn(2, 3, 8, 12)]
    found = exported(Twice().eval(), batches=batches, qconfig=qconfig)
    nodes = optimized(found.path, tmp_path)
    assert interpolates_floats(nodes) == [True, True]
    assert found.report.checks['integer_layers'] == 2


def test_a_grid_on_both_sides_stays_but_for_the_last_bit(tmp_path):
    grid = ['s', 'z']
    graph = graph_of(
        helper.make_node('QuantizeLinear', ['x', *grid], ['q']),
        helper.make_node('DequantizeLinear', ['q', *grid], ['a']),
        helper.make_node('Resize', ['a', '', 'sizes'], ['r'], mode='linear'),
        helper.make_node('QuantizeLinear', ['r', *grid], ['rq']),
        helper.make_node('DequantizeLinear', ['rq', *grid], ['y']),
        constants=[
            ('s', np.array(0.01, np.float32)),
            ('z', np.array(128, np.uint8)),
            ('sizes', np.array([1, 1, 2, 2], np.float32)),
        ],
    )
    assert float_resizes(graph) == 1
    assert float_resizes(graph) == 0
    before, after = (
        graph.array(graph.producer[name].input[1]) for name in ('a', 'y')
    )
    assert after == np.nextafter(before, np.float32(1))
    assert graph.producer['rq'].input[1] == graph.producer['y'].input[1]
