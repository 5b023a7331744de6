import onnx
import pytest
import torch
from torch import nn


class Outputs(nn.Module):
    """A convolution and a linear with so many outputs."""

    def __init__(self, count):
        super().__init__()
        self.stem = nn.Conv2d(3, count, 1)
        self.head = nn.Linear(count, count)

    def forward(self, x):
        return self.head(self.stem(x).flatten(2).transpose(1, 2))


@pytest.mark.parametrize(('count', 'padded'), [(16, 0), (21, 2), (32, 0)])
def test_wrong_numbers_of_channels_are_padded(exported, count, padded):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    # Verification compares the padded file with the network.
    found = exported(Outputs(count).eval(), batches=[x])
    assert len(found.report.padded) == padded
    assert found.report.checks['float_layers'] == []
    slices = [
        node
        for node in onnx.load(str(found.path)).graph.node
        if node.op_type == 'Slice' and node.name.endswith('/cut')
    ]
    assert len(slices) == padded


@pytest.mark.parametrize('value', [0.0, 0.5])
def test_a_weight_without_negative_values_is_padded(exported, value):
    # As offsets of deformable convolutions before training: codes from 0 on
    # have another zero point than the columns that are added.
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 27, 1))
    with torch.no_grad():
        model[2].weight.fill_(value)
    found = exported(model.eval(), batches=[torch.randn(1, 3, 8, 8)])
    assert found.report.padded
    assert found.report.checks['float_layers'] == []
