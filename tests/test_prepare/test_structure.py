"""Blocks that no list names, found by the structure of a model."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from taskptq.prepare import QConfig, prepare, split_blocks
from taskptq.prepare.structure import _adds_input, find_blocks
from taskptq.reconstruction.capture.tracing import called_modules
from taskptq.testing import tiny_model


class Pair(nn.Module):
    """Two layers in a row, (N, 4) -> (N, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())


class Residual(nn.Module):
    """A wrapper that adds its input to what a module gives."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Encoder(nn.Module):
    """A block of two repeated attentions-to-be and a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.mixers = nn.ModuleList([Pair(), Pair()])
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for mixer in self.mixers:
            out = out + mixer(out)
        return self.fc(out)


class Stage(nn.Module):
    """Blocks in a row and a layer behind them, without a sum."""

    def __init__(self, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.down = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.down(x)


class Twice(nn.Module):
    """Calls its first pair twice and its last one never."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs = nn.ModuleList([Pair(), Pair(), Pair()])

    def forward(self, x: Tensor) -> Tensor:
        return self.pairs[1](self.pairs[0](self.pairs[0](x)))


def swapped(model: nn.Module) -> nn.Module:
    model.eval()
    prepare(model, QConfig.from_dict({}))
    return model


def blocks_of(model: nn.Module, **kwargs: object) -> list[str]:
    return sorted(find_blocks(swapped(model), **kwargs))


def test_repeated_siblings_are_blocks() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(Pair(), Pair()))
    assert blocks_of(model) == ['1.0', '1.1']
    names = [unit.name for unit in split_blocks(model)]
    assert names == ['0', '1.0', '1.1']


def test_one_of_a_kind_is_none() -> None:
    assert blocks_of(nn.Sequential(Pair(), nn.Linear(4, 4))) == []


def test_a_class_that_is_repeated_counts_everywhere() -> None:
    model = nn.Sequential(
        nn.Sequential(Pair(), Pair()), nn.ModuleList([Pair()])
    )
    assert blocks_of(model) == ['0.0', '0.1', '1.0']


def test_containers_and_single_layers_are_none() -> None:
    bare = [nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(2)]
    single = [Residual(nn.Linear(4, 4)) for _ in range(2)]
    assert blocks_of(nn.Sequential(*bare, *single)) == []


def test_an_attention_is_one_layer() -> None:
    attentions = tiny_model('window').attn, tiny_model('window').attn
    assert blocks_of(nn.Sequential(*map(Residual, attentions))) == []


def test_a_residual_wrapper_is_a_block() -> None:
    layers = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    assert blocks_of(nn.Sequential(Residual(layers))) == ['0']


def test_of_a_stage_and_its_blocks_the_blocks_count() -> None:
    stages = [Stage([Residual(Pair()), Residual(Pair())]) for _ in range(2)]
    found = blocks_of(nn.Sequential(*stages))
    assert found == ['0.blocks.0', '0.blocks.1', '1.blocks.0', '1.blocks.1']
    plain = [Stage([Pair(), Pair()]) for _ in range(2)]
    assert blocks_of(nn.Sequential(*plain)) == found


def test_a_repeated_residual_module_wins_over_what_repeats_in_it() -> None:
    assert blocks_of(nn.Sequential(Encoder(), Encoder())) == ['0', '1']


def test_a_residual_wrapper_inside_a_block_is_none() -> None:
    blocks = [Residual(Residual(Pair())) for _ in range(2)]
    assert blocks_of(nn.Sequential(*blocks)) == ['0.inner', '1.inner']
    inner = [Stage([Residual(Pair())]) for _ in range(2)]
    assert blocks_of(nn.Sequential(*inner)) == ['0', '1']


@pytest.mark.parametrize('listed', ['0.a', '1'])
def test_a_listed_block_wins(listed: str) -> None:
    # Inside of a candidate and around it.
    model = nn.Sequential(Pair(), nn.Sequential(Pair(), Pair()))
    assert (
        blocks_of(model, listed=[listed])
        == {
            '0.a': ['1.0', '1.1'],
            '1': ['0'],
        }[listed]
    )


def test_registered_blocks_are_split_no_further() -> None:
    model = swapped(nn.Sequential(Stage([tiny_block(), tiny_block()])))
    names = [unit.name for unit in split_blocks(model)]
    assert names == ['0.blocks.0', '0.blocks.1', '0.down']


def tiny_block() -> nn.Module:
    return tiny_model('conv').layer1


def test_a_block_is_called_once_in_a_pass() -> None:
    model = swapped(nn.Sequential(Twice()))
    called = called_modules(
        model, torch.randn(2, 4), forward=lambda model, batch: model(batch)
    )
    assert called['0.pairs.0'] == 2
    assert '0.pairs.2' not in called
    assert sorted(find_blocks(model, calls=called)) == ['0.pairs.1']
    names = [unit.name for unit in split_blocks(model, callable_names=called)]
    assert names == ['0.pairs.0.a', '0.pairs.0.b', '0.pairs.1']


def test_scope_of_layers_has_no_blocks() -> None:
    model = swapped(nn.Sequential(Pair(), Pair()))
    names = [unit.name for unit in split_blocks(model, scope='layer')]
    assert names == ['0.a', '0.b', '1.a', '1.b']


def identity(self, x):
    identity = x
    out = self.conv(x)
    out += identity
    return out


def in_place(self, x):
    x += self.fn(x)
    return x


def nested(self, x):
    def inner(x):
        return x + self.drop(self.attn(x))

    return inner(x)


def keyword(self, *, query):
    out = self.attn(query)
    return self.norm(query + out)


def position(self, x, pos):
    return self.fc(x + pos)


def table(self, x):
    x = x + self.positions
    return self.fc(x)


def fused(self, x, y):
    left, right = self.a(x), self.b(y)
    return left + right


def counted(self, x):
    for index in range(self.depth + 1):
        x = self.layers[index](x)
    return x


@pytest.mark.parametrize(
    ('forward', 'expected'),
    [
        (identity, True),
        (in_place, True),
        (nested, True),
        (keyword, True),
        (position, False),
        (fused, False),
        (table, False),
        (counted, False),
        (len, False),
    ],
    ids=lambda value: getattr(value, '__name__', None),
)
def test_sum_with_an_input(
    forward: Callable[..., object], expected: bool
) -> None:
    assert _adds_input(forward) is expected


def test_segnext_is_a_few_dozen_units() -> None:
    mmseg = pytest.importorskip('mmseg.models.backbones.mscan')
    model = nn.Sequential(
        mmseg.MSCAN(
            embed_dims=[8, 8, 8, 8],
            depths=[3, 3, 5, 2],
            mlp_ratios=[2, 2, 2, 2],
            drop_path_rate=0.0,
            norm_cfg={'type': 'BN'},
        )
    )
    swapped(model)
    called = called_modules(
        model,
        torch.randn(1, 3, 64, 64),
        forward=lambda model, batch: model(batch),
    )
    units = split_blocks(model, callable_names=called)
    kinds = [type(unit.module).__name__ for unit in units]
    assert kinds.count('MSCABlock') == 3 + 3 + 5 + 2
    assert len(split_blocks(model, scope='layer')) == 174
    assert len(units) <= 20


def test_hrnet_modules_are_blocks() -> None:
    hrnet = pytest.importorskip('mmseg.models.backbones.hrnet')
    stage = {'block': 'BASIC', 'num_blocks': (1, 1), 'num_channels': (4, 8)}
    extra = {
        'stage1': {
            'num_modules': 1,
            'num_branches': 1,
            'block': 'BOTTLENECK',
            'num_blocks': (1,),
            'num_channels': (4,),
        },
        'stage2': {'num_modules': 1, 'num_branches': 2, **stage},
        'stage3': {
            'num_modules': 2,
            'num_branches': 3,
            'block': 'BASIC',
            'num_blocks': (1, 1, 1),
            'num_channels': (4, 8, 16),
        },
        'stage4': {
            'num_modules': 1,
            'num_branches': 4,
            'block': 'BASIC',
            'num_blocks': (1, 1, 1, 1),
            'num_channels': (4, 8, 16, 32),
        },
    }
    model = swapped(nn.Sequential(hrnet.HRNet(extra=extra)))
    names = [unit.name for unit in split_blocks(model)]
    modules = ['0.stage2.0', '0.stage3.0', '0.stage3.1', '0.stage4.0']
    assert [name for name in names if 'stage' in name] == modules
