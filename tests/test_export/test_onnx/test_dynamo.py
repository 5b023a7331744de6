import sys

import numpy as np
import onnx
import pytest
import torch
from torch import nn

pytest.importorskip('onnxscript')

from taskptq.core.setting_error import SettingError
from taskptq.export.onnx.dynamo import free_shapes
from taskptq.export.onnx.runtime import session
from taskptq.export.runtime import OnnxFileError

FREE = {'x': {0: 'batch'}, 'y': {0: 'batch'}}


def run(path, x):
    return session(str(path)).run(None, {'x': x.numpy()})[0]


def test_both_exporters_write_the_same_file_but_for_names(exported):
    expected = exported('conv', dynamic_axes=FREE)
    plain = run(expected.path, expected.x)
    found = exported('conv', exporter='dynamo', dynamic_axes=FREE)
    assert found.report.num_weights == expected.report.num_weights
    assert found.report.checks['float_layers'] == []
    assert found.report.checks['integer_layers'] == 7
    np.testing.assert_allclose(run(found.path, found.x), plain, atol=1e-5)
    three = torch.cat([found.x, found.x[:1]])
    assert len(run(found.path, three)) == len(three)
    graph = onnx.load(str(found.path)).graph
    names = [node.name for node in graph.node]
    assert '/stem/Conv' in names, names
    assert len(set(names)) == len(names)
    # No source files of this machine.
    assert b'.py' not in found.path.read_bytes()
    for value in (*graph.input, *graph.output):
        assert value.type.tensor_type.shape.dim[0].dim_param == 'batch'


class Gathered(nn.Module):
    def forward(self, *tensors):
        return tensors


class Named(nn.Module):
    def forward(self, x, mask):
        return x, mask


def test_free_sizes_follow_the_signature():
    axes = {'x': {0: 'batch'}, 'y': {0: 'batch'}}
    free = {0: torch.export.Dim.DYNAMIC}
    assert free_shapes(Named(), ['x', 'mask'], axes) == (free, None)
    assert free_shapes(Gathered(), ['x', 'mask'], axes) == ((free, None),)


def test_what_it_cannot_write_is_refused_before_the_work(
    exported, monkeypatch
):
    with pytest.raises(SettingError, match="opset=17: exporter='dynamo' wr"):
        exported('conv', exporter='dynamo', opset=17)
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    with pytest.raises(OnnxFileError, match='needs onnxscript, which is not'):
        exported('conv', exporter='dynamo')
