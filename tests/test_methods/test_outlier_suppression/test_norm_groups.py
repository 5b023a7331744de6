"""Which layers read a LayerNorm, however its tokens are arranged."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from taskptq.methods.outlier_suppression.norm_groups import find_norm_groups
from taskptq.methods.rewriting.statistics import open_attention
from taskptq.testing import tiny_batches, tiny_model


class Block(nn.Module):
    """A norm whose output goes through a function into layers."""

    def __init__(self, connect, *, bias=True):
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.one, self.two = nn.Linear(4, 4, bias=bias), nn.Linear(4, 4)
        self.conv = nn.Conv2d(4, 4, 2, stride=2)
        self.padded = nn.Conv2d(4, 4, 3, padding=1)
        self.attn = nn.MultiheadAttention(4, 2, batch_first=True)
        self.connect = connect

    def forward(self, x):
        return self.connect(self, x)


def groups_of(connect, **options):
    model = Block(connect, **options).eval()
    x = torch.randn(2, 4, 4, 4)
    with open_attention(), torch.no_grad():
        groups = find_norm_groups(model, lambda: model(x))
    return {
        group.name: (
            [reader.label for reader in group.readers],
            group.obstacle,
            group.padders,
        )
        for group in groups
    }


def windows(m, x):
    y = torch.roll(m.norm(x), (1, 1), (1, 2))
    y = y.view(2, 2, 2, 2, 2, 4).permute(0, 1, 3, 2, 4, 5)
    return m.one(y.reshape(-1, 4, 4))


def padded_windows(m, x):
    return m.one(F.pad(m.norm(x), (0, 0, 0, 1, 0, 1)).flatten(1, 2))


def maybe_padded(m, x):
    return m.one(F.pad(m.norm(x), (0, 0, 0, 0, 0, 0)))


def padded_channels_first(m, x):
    y = F.pad(m.norm(x).permute(0, 3, 1, 2), (0, 1, 0, 1))
    return m.one(y.permute(0, 2, 3, 1))


def others_are_padded(m, x):
    return m.one(F.pad(m.norm(x), (0, 0, 0, 1))) + F.pad(x, (0, 0, 0, 1))


def both(m, x):
    y = m.norm(x)
    return m.one(y).sum() + m.conv(y.permute(0, 3, 1, 2)).sum()


def attention(m, x):
    y = m.norm(x).flatten(1, 2)
    return m.attn(y, y, y)[0]


def crossed(m, x):
    y = m.norm(x).flatten(1, 2)
    return m.attn(y, m.one(y), m.one(y))[0]


@pytest.mark.parametrize(
    ('connect', 'labels', 'obstacle'),
    [
        (lambda m, x: m.one(m.norm(x)), ['one'], ''),
        (windows, ['one'], ''),
        (both, ['conv', 'one'], ''),
        (attention, ['attn:key', 'attn:query', 'attn:value'], ''),
        (crossed, ['attn:query', 'one'], ''),
        (padded_channels_first, ['one'], 'zero padding on the way'),
        (others_are_padded, ['one'], 'zero padding on the way'),
        (
            lambda m, x: m.padded(m.norm(x).permute(0, 3, 1, 2)),
            ['padded'],
            'zero padding of padded',
        ),
        (lambda m, x: m.one(m.norm(x).relu()), ['one'], 'relu on the way'),
    ],
)
def test_ways_to_read(connect, labels, obstacle):
    assert groups_of(connect) == {'norm': (labels, obstacle, ())}


@pytest.mark.parametrize('connect', [padded_windows, maybe_padded])
def test_a_module_that_pads_is_named(connect):
    model = nn.Sequential(Block(connect)).eval()
    with torch.no_grad():
        (group,) = find_norm_groups(
            model, lambda: model(torch.randn(2, 4, 4, 4))
        )
    assert (group.padders, group.obstacle) == (('0',), '')


@pytest.mark.parametrize(
    'connect',
    [
        lambda m, x: x + m.norm(x) + m.one(m.norm(x)),
        lambda m, x: m.one(m.norm(x) + x),
        lambda m, x: m.norm(m.norm(x)),
        lambda m, x: m.one(F.gelu(m.norm(x))),
        lambda m, x: m.one(m.norm(x)) + m.one(x),
        lambda m, x: m.one(torch.cat([m.norm(x), x])),
        lambda m, x: m.norm(x),
    ],
)
def test_others_read_it_too(connect):
    assert groups_of(connect) == {}


def test_a_reader_without_bias_gets_no_shift():
    found = groups_of(lambda m, x: m.one(m.norm(x)), bias=False)
    assert found['norm'][1] == 'one has no bias to bring the shift back'


def test_tiny_window_model():
    model = tiny_model('window')
    (x,) = tiny_batches('window', num_batches=1)
    with torch.no_grad():
        groups = find_norm_groups(model, lambda: model(x))
    assert {
        group.name: [reader.label for reader in group.readers]
        for group in groups
    } == {'norm1': ['attn.qkv'], 'norm2': ['fc1']}
