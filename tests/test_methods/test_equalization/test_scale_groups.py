"""Which layers share channels with nothing but a ReLU between them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from taskptq.methods.equalization.scale_groups import find_layer_groups


def groups_of(model, *args):
    found = find_layer_groups(model.eval(), lambda: model(*args))
    return {group.name: [name for name, _ in group.readers] for group in found}


class Layers(nn.Module):
    """Linears that a function of them connects."""

    def __init__(self, connect):
        super().__init__()
        for name in ('one', 'two', 'three'):
            setattr(self, name, nn.Linear(4, 4))
        self.connect = connect

    def forward(self, x):
        return self.connect(self, x)


def assigned(m, x):
    y = m.one(x)
    y[0] = 1
    return m.two(y)


def learned_slopes(m, x):
    y = m.one(x[:, :1].expand(2, 4, 4))
    return m.two(F.prelu(y, m.three(x[0, 0])))


def residual(m, x):
    y = torch.relu(m.one(x))
    return y + m.two(y)


def residual_before(m, x):
    y = m.one(x)
    return y + m.two(torch.relu(y))


def several_readers(m, x):
    y = torch.relu(m.one(x))
    return m.two(y) + m.three(y)


def read_before_and_after(m, x):
    y = m.one(x)
    return m.two(y) + m.three(torch.relu(y))


PAIR = {'one': ['two']}
BOTH = {'one': ['two', 'three']}


@pytest.mark.parametrize(
    ('connect', 'expected'),
    [
        (lambda m, x: m.two(m.one(x)), PAIR),
        (lambda m, x: m.two(F.relu(m.one(x))), PAIR),
        (lambda m, x: m.two(F.relu(m.one(x), inplace=True)), PAIR),
        (lambda m, x: m.two(F.prelu(m.one(x), torch.ones(1) / 4)), PAIR),
        (learned_slopes, {}),
        (lambda m, x: m.two(F.dropout(m.one(x), 0.5, m.training)), PAIR),
        (lambda m, x: m.two(m.one(x)) + m.two(m.one(2 * x)), PAIR),
        (several_readers, BOTH),
        (read_before_and_after, BOTH),
        (residual, {}),
        (residual_before, {}),
        (assigned, {}),
        (lambda m, x: m.three(m.one(x)) + m.three(m.two(x)), {}),
        (lambda m, x: m.two(m.one(x).sigmoid()), {}),
        (lambda m, x: m.two(m.one(x).flatten(0, 1)), {}),
        (lambda m, x: m.two(m.one(x)) @ m.one.weight, {}),
        (lambda m, x: m.one(x), {}),
    ],
)
def test_ways_to_connect(connect, expected):
    assert groups_of(Layers(connect), torch.randn(2, 3, 4)) == expected


def test_batch_norm_gives_and_reads_nothing():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 5, 1),
        nn.LeakyReLU(),
        nn.Conv2d(5, 6, 1),
    )
    assert groups_of(model, torch.randn(1, 3, 8, 8)) == {
        '1': ['3'],
        '3': ['5'],
    }


def test_batch_norm_without_weights_gives_nothing():
    model = nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.Conv2d(3, 4, 1))
    assert groups_of(model, torch.randn(1, 3, 8, 8)) == {}


def test_layer_norm_gives_and_reads_nothing():
    model = nn.Sequential(
        nn.Linear(4, 4),
        nn.LayerNorm(4),
        nn.Linear(4, 4),
        nn.LayerNorm((3, 4)),
        nn.Linear(4, 4),
        nn.LayerNorm(4, elementwise_affine=False),
        nn.Linear(4, 4),
    )
    assert groups_of(model, torch.randn(2, 3, 4)) == {'1': ['2']}


def test_tied_weights_are_left_alone():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model.tied = nn.Linear(4, 4)
    model.tied.weight = model[0].weight
    layers = nn.Sequential(*list(model)[:3])
    model.forward = layers.forward
    assert groups_of(model, torch.randn(2, 4)) == {}


def test_attention_of_torch_reads_its_projection_itself():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.last = nn.Linear(4, 4)

        def forward(self, x):
            x = self.first(x)
            return self.last(self.attention(x, x, x)[0])

    assert groups_of(Model(), torch.randn(2, 3, 4)) == {}
