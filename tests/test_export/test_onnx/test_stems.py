import numpy as np
import onnx
import pytest
import torch
from torch import nn

from taskptq.export.onnx import export, stems
from taskptq.export.onnx.runtime import session


class Stem(nn.Module):
    """A strided convolution on an image, and a head."""

    def __init__(self, kernel, stride, padding, channels=3):
        super().__init__()
        self.stem = nn.Conv2d(channels, 8, kernel, stride, padding)
        self.head = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return self.head(torch.relu(self.stem(x)))


def folded(path):
    """Return the stems that read blocks, with their kernels."""
    model = onnx.load(str(path))
    kernels = {
        tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer
    }
    makers = {node.output[0]: node for node in model.graph.node}
    return {
        node.name: kernels[makers[node.input[1]].input[0]]
        for node in model.graph.node
        if node.op_type == 'Conv' and node.input[0].endswith('blocks/on_grid')
    }


def run(path, x):
    return session(str(path), optimize=False).run(None, {'x': x.numpy()})[0]


@pytest.mark.parametrize(
    ('kernel', 'stride', 'padding', 'expected'),
    [
        (7, 2, 3, (8, 12, 4, 4)),
        (3, 2, 1, (8, 12, 2, 2)),
        (7, 4, 3, (8, 48, 2, 2)),
        (4, 4, 0, (8, 48, 1, 1)),
        ((3, 5), 2, (1, 2), (8, 12, 2, 3)),
        (2, 2, 1, (8, 12, 2, 2)),
    ],
)
def test_a_stem_computes_the_same_in_blocks(
    exported, monkeypatch, kernel, stride, padding, expected
):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 24, 16)
    # Verification compares codes and outputs with the network as well.
    found = exported(Stem(kernel, stride, padding).eval(), batches=[x])
    assert folded(found.path) == {'/stem/Conv': expected}
    assert found.report.checks['float_layers'] == []
    values = run(found.path, x)
    monkeypatch.setattr(export, 'fold_strides', lambda graph: [])
    torch.manual_seed(0)
    x = torch.randn(2, 3, 24, 16)
    plain = exported(Stem(kernel, stride, padding).eval(), batches=[x])
    assert folded(plain.path) == {}
    np.testing.assert_array_equal(run(plain.path, x), values)


@pytest.mark.parametrize('size', [(23, 16), (24, 17), (21, 19)])
@pytest.mark.parametrize(('kernel', 'stride'), [(7, 2), (3, 2), (7, 4)])
def test_sizes_that_are_no_multiple_are_filled_up(
    exported, monkeypatch, size, kernel, stride
):
    def make():
        torch.manual_seed(0)
        x = torch.randn(2, 3, *size)
        model = Stem(kernel, stride, kernel // 2).eval()
        found = exported(model, batches=[x])
        return found, run(found.path, x)

    found, values = make()
    assert len(folded(found.path)) == 1
    monkeypatch.setattr(export, 'fold_strides', lambda graph: [])
    _, expected = make()
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize(
    ('model', 'size'),
    [
        (Stem(3, 1, 1), (24, 16)),
        (Stem(3, 4, 0), (24, 10)),
        (Stem(3, 2, 1, channels=8), (24, 16)),
    ],
    ids=['no stride', 'pixels unread', 'many channels'],
)
def test_others_stay_as_they_are(exported, model, size):
    x = torch.randn(1, model.stem.in_channels, *size)
    assert folded(exported(model.eval(), batches=[x]).path) == {}


@pytest.mark.parametrize(
    'options',
    [
        {'dynamic_axes': {'x': {2: 'height', 3: 'width'}}},
        {'target': 'openvino'},
        {'qconfig': {'weight': {'symmetric': False, 'per_channel': False}}},
    ],
    ids=['free size', 'other runtime', 'zero points'],
)
def test_files_of_other_kinds_have_no_blocks(exported, options):
    x = torch.randn(1, 3, 24, 16)
    found = exported(Stem(3, 2, 1).eval(), batches=[x], **options)
    assert folded(found.path) == {}


def test_half_bytes_and_free_batches(exported):
    x = torch.randn(2, 3, 24, 16)
    found = exported(
        Stem(7, 2, 3).eval(),
        batches=[x],
        qconfig={'weight': {'num_bits': 4}, 'edge_bits': 4},
        dynamic_axes={'x': {0: 'batch'}, 'y': {0: 'batch'}},
    )
    kinds = {t.data_type for t in onnx.load(str(found.path)).graph.initializer}
    assert onnx.TensorProto.INT4 in kinds
    one = run(found.path, x[:1])
    np.testing.assert_array_equal(one, run(found.path, x)[:1])


def test_padding_that_leaves_pixels_unread():
    axis = stems.Axis(size=8, kernel=1, stride=4, before=0, after=0)
    assert (axis.offset, axis.blocks, axis.blocks_after) == (0, 1, 0)
