import onnx
import pytest
import torch
from torch import nn


class Stacked(nn.Module):
    """Slices of an image as channels, in some order, and a convolution."""

    def __init__(self, places, *, block=2):
        super().__init__()
        self.places, self.block = places, block
        self.conv = nn.Conv2d(3 * len(places), 8, 3, padding=1)

    def forward(self, x):
        step = self.block
        rows = [x[..., i::step, j::step] for i, j in self.places]
        return self.conv(torch.cat(rows, dim=1))


def kinds_of(path):
    return [node.op_type for node in onnx.load(str(path)).graph.node]


@pytest.mark.parametrize(
    ('places', 'block'),
    [
        # As YOLOX stacks them, and as SpaceToDepth does.
        ([(0, 0), (1, 0), (0, 1), (1, 1)], 2),
        ([(0, 0), (0, 1), (1, 0), (1, 1)], 2),
        ([(i, j) for j in range(3) for i in range(3)], 3),
    ],
)
def test_stacked_slices_become_one_operator(exported, places, block):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 12, 12)
    # Verification compares the file with the network.
    model = Stacked(places, block=block).eval()
    found = exported(model, batches=[x])
    kinds = kinds_of(found.path)
    assert kinds.count('SpaceToDepth') == 1
    assert not {'Slice', 'Concat'} & set(kinds)
    assert found.report.checks['float_layers'] == []


@pytest.mark.parametrize(
    'places',
    [
        [(0, 0), (1, 0), (0, 1), (0, 1)],
        [(0, 0), (1, 0), (0, 1)],
    ],
)
def test_other_slices_stay(exported, places):
    torch.manual_seed(0)
    found = exported(Stacked(places).eval(), batches=[torch.randn(1, 3, 8, 8)])
    kinds = kinds_of(found.path)
    assert 'SpaceToDepth' not in kinds
    assert 'Slice' in kinds


@pytest.mark.parametrize(
    ('target', 'merged'), [('openvino', True), ('tensorrt', False)]
)
def test_targets_that_gain_have_it(exported, target, merged):
    torch.manual_seed(0)
    found = exported(
        Stacked([(0, 0), (1, 0), (0, 1), (1, 1)]).eval(),
        batches=[torch.randn(1, 3, 8, 8)],
        target=target,
        qconfig={'deploy': target},
    )
    assert ('SpaceToDepth' in kinds_of(found.path)) is merged
