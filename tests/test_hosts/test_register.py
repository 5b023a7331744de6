"""The public functions: what they accept, and what the tables then hold."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from taskptq import hosts
from taskptq.core.settings import SettingError
from taskptq.hosts import registry
from taskptq.hosts.class_lookup import (
    counterpart_name,
    layer_patterns,
    lookup,
)
from taskptq.modules import QuantConv2d, QuantLinear

pytestmark = pytest.mark.usefixtures('restored_tables')


class Mine(nn.Linear):
    """A user's layer, with a forward of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class Head(nn.Module):
    """A user's head."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = Mine(2, 2)
        self.boxes = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), Mine(2, 2))


NAME = f'{__name__}.Mine'
# Function -> arguments after the host, and others.
VALUES: dict[str, tuple[Any, Any]] = {
    'register_counterpart': (QuantLinear, QuantConv2d),
    'register_float': ('a table', 'another table'),
    'register_replayed_input': ('rois', 'boxes'),
    'register_computed_weight': (nn.Linear, nn.Conv2d),
}
SETS = {
    'register_block': registry.BLOCKS,
    'register_rows': registry.ROW_MODULES,
    'register_norm': registry.NORMS,
    'register_conv_norm': registry.CONV_NORM_CLASSES,
}


def function(name: str) -> Callable[..., None]:
    return getattr(hosts, name)


def test_every_function_is_public_and_documented() -> None:
    names = [name for name in vars(registry) if name.startswith('register_')]
    assert sorted(names) == sorted(
        name for name in hosts.__all__ if name.startswith('register_')
    )
    assert all(f'``{name}``' in hosts.__doc__ for name in names)
    tested = {*VALUES, *SETS, *PATTERNS, 'register_training_only'}
    assert tested == set(names)


@pytest.mark.parametrize('host', [Mine, NAME], ids=['class', 'name'])
def test_counterpart_by_class_or_name(host: Any) -> None:
    assert lookup(Mine(2, 2)) is None
    hosts.register_counterpart(host, QuantLinear)
    assert lookup(Mine(2, 2)) is QuantLinear
    assert counterpart_name(Mine(2, 2)) == 'QuantLinear'


def test_counterpart_is_resolved_late() -> None:
    hosts.register_counterpart(Mine, f'{__name__}.Later')
    globals()['Later'] = QuantLinear
    try:
        assert lookup(Mine(2, 2)) is QuantLinear
    finally:
        del globals()['Later']
    with pytest.raises(SettingError, match=r'Later.*subclass of QuantModule'):
        lookup(Mine(2, 2))


def test_host_that_is_not_installed_is_not_mapped() -> None:
    hosts.register_counterpart('no_such_package.Layer', QuantLinear)
    hosts.register_block('no_such_package.Block')
    assert lookup(Mine(2, 2)) is None


@pytest.mark.parametrize('name', VALUES)
def test_second_value_must_be_the_first(name: str) -> None:
    first, second = VALUES[name]
    function(name)(Mine, first)
    function(name)(NAME, first)
    with pytest.raises(SettingError, match=r'Mine is registered with.*force'):
        function(name)(Mine, second)
    function(name)(Mine, first)  # the refused value left nothing behind
    function(name)(Mine, second, force=True)
    with pytest.raises(SettingError, match='is registered with'):
        function(name)(Mine, first)


@pytest.mark.parametrize('name', [*VALUES, *SETS])
@pytest.mark.parametrize(
    'host',
    [3, None, 'Mine', '', 'a b.Mine', int, Mine(2, 2)],
    ids=['number', 'none', 'bare', 'empty', 'space', 'int', 'instance'],
)
def test_host_is_a_module_class_or_a_dotted_name(name: str, host: Any) -> None:
    arguments = VALUES.get(name, ())[:1]
    with pytest.raises(SettingError, match=r'^host=.*dotted name') as caught:
        function(name)(host, *arguments)
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
    ('name', 'arguments', 'message'),
    [
        ('register_counterpart', (nn.Linear,), '^counterpart=.*QuantModule'),
        ('register_counterpart', ('Bare',), '^counterpart=.*dotted name'),
        ('register_counterpart', (None,), '^counterpart='),
        ('register_float', (3,), '^reason=3: give the reason in words'),
        ('register_replayed_input', (None,), '^argument=None'),
        ('register_computed_weight', ('Conv2d',), '^plain=.*Module'),
    ],
)
def test_bad_value_is_one_sentence(
    name: str, arguments: tuple[Any, ...], message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        function(name)(Mine, *arguments)
    with pytest.raises(SettingError, match=r"^force='yes'"):
        function(name)(Mine, VALUES[name][0], force='yes')


@pytest.mark.parametrize('name', SETS)
def test_sets_of_classes(name: str) -> None:
    function(name)(Mine)
    function(name)(NAME)
    assert NAME in SETS[name]


def test_class_with_its_own_order_of_conv_and_norm() -> None:
    hosts.register_conv_norm(Mine, with_order=True)
    assert NAME in registry.CONV_MODULES
    assert NAME not in registry.CONV_NORM_CLASSES


PATTERNS = {
    'register_output_layer': registry.OUTPUT_LAYERS,
    'register_output_sequence': registry.OUTPUT_SEQUENCES,
    'register_position_layer': registry.POSITION_LAYERS,
}


@pytest.mark.parametrize('name', PATTERNS)
def test_pattern_of_any_model_or_of_a_class(name: str) -> None:
    table = PATTERNS[name]
    before = table.get('', ())
    function(name)('*.mine')
    function(name)('fc', host=Head)
    function(name)('fc', host=f'{__name__}.Head')
    assert table[''] == (*before, '*.mine')
    assert table[f'{__name__}.Head'] == ('fc',)
    model = nn.Sequential(Head(), Head())
    found = layer_patterns(model, table)
    assert found[len(before) :] == [('', '*.mine'), ('0.', 'fc'), ('1.', 'fc')]


@pytest.mark.parametrize('name', PATTERNS)
def test_pattern_must_compile(name: str) -> None:
    for pattern in ('re:(', '', 3):
        with pytest.raises(SettingError, match=r'^pattern='):
            function(name)(pattern)
    with pytest.raises(SettingError, match=r'^host='):
        function(name)('fc', host='Head')


def test_training_only_attributes_add_up() -> None:
    hosts.register_training_only('aux', host=Head)
    hosts.register_training_only('dn', 'aux', host=Head)
    assert registry.TRAINING_ONLY[f'{__name__}.Head'] == ('aux', 'dn')
    with pytest.raises(SettingError, match=r'^names=3'):
        hosts.register_training_only(3)
