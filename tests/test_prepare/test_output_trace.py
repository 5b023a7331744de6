import pytest
import torch
import torch.nn.functional as F
from torch import nn

from taskptq.prepare.grid_plan import ABSORBED, MOVER, OTHER, PRODUCT, SUM
from taskptq.prepare.output_trace import kind_of, trace_operators


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)
        self.relu = nn.ReLU(inplace=True)
        self.skip = nn.Identity()

    def forward(self, x):
        y = self.relu(x * 2.0)
        y = self.conv(y)
        y += self.skip(x)
        return self.relu(y).flatten(1)


def trace(model, x):
    return trace_operators(model, lambda: model(x))


def test_operators_and_tensors_are_followed_through_writes_in_place():
    found = trace(Residual(), torch.randn(1, 3, 4, 4))
    kinds = [operator.kind for operator in found.operators]
    assert kinds == [OTHER, ABSORBED, PRODUCT, SUM, ABSORBED, MOVER]
    _, first, conv, total, last, flat = found.operators
    assert conv.inputs == first.outputs
    assert total.inputs[0] == conv.outputs[0]
    assert last.inputs == total.outputs
    assert found.outputs == list(flat.outputs)


def test_only_what_computes_a_tensor_gives_it():
    found = trace(Residual(), torch.randn(1, 3, 4, 4))
    conv = found.operators[2].outputs[0]
    assert [name for name, _ in found.givers[conv]] == ['conv']
    assert all(
        name != 'skip' for given in found.givers.values() for name, _ in given
    )
    assert len(found.returned['relu']) == 2
    assert found.first_reader(conv) == 3


@pytest.mark.parametrize(
    ('call', 'kind'),
    [
        ((F.interpolate, (torch.zeros(1, 1, 2, 2),), {}), MOVER),
        ((F.interpolate, (1,), {'mode': 'bilinear'}), OTHER),
        ((F.interpolate, (1, None, 2, 'bilinear'), {}), OTHER),
        ((F.interpolate, (1,), {'mode': 'bicubic'}), OTHER),
        ((torch.add, (torch.zeros(1), 1.0), {}), OTHER),
        ((torch.cat, ([torch.zeros(1), torch.zeros(1)],), {}), SUM),
        ((F.adaptive_avg_pool2d, (torch.zeros(1, 1, 2, 2), 1), {}), SUM),
        ((torch.softmax, (torch.zeros(1), 0), {}), OTHER),
    ],
)
def test_kinds_of_functions(call, kind):
    assert kind_of(*call) == kind
