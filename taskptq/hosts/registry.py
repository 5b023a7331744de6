"""Tables of host classes, and the functions that fill them.

A host is named by its dotted name and looked up by the classes of a model, so
that a package that is not installed is simply not mapped. The entries of the
packages lie in the files next to this one; users register their own modules
with the same functions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from torch import nn

from taskptq.core.settings import Flag, Pattern, Subclass, Text, refuse
from taskptq.modules.base import QuantModule

Host = str | type[nn.Module]
_Value = TypeVar('_Value')

# Float class -> its counterpart: a class, or its dotted name.
COUNTERPARTS: dict[str, str | type[QuantModule]] = {}
# Convolutions that standardize their weight at each call -> the class that
# they are once that weight is stored.
COMPUTED_WEIGHTS: dict[str, type[nn.Module]] = {}
# Norms with a forward of their own that is BatchNorm's in eval mode.
NORMS: set[str] = set()
# Classes whose forward calls norm i directly after conv i; a subclass counts
# as long as it has that forward.
CONV_NORM_CLASSES: set[str] = set()
# Classes that run a conv, its norm and an activation in a stated order.
CONV_MODULES: set[str] = set()
# Classes that stay float by design, with the reason.
KEPT_FLOAT: dict[str, str] = {}
# Reconstruction blocks; a subclass counts as well.
BLOCKS: set[str] = set()
# Units whose first axis holds independent rows, images or not: prompts of
# an image, windows. Elsewhere the axis of a token tensor may be the sequence.
ROW_MODULES: set[str] = set()
# Inputs that select rows and therefore differ between the float and the
# quantized model; captures replay the float model's (class -> argument).
REPLAYED_INPUTS: dict[str, str] = {}
# Last layers of heads: class that holds them ('' is any) -> name patterns.
OUTPUT_LAYERS: dict[str, tuple[str, ...]] = {}
# Sequences whose layer of the highest index is such a last layer.
OUTPUT_SEQUENCES: dict[str, tuple[str, ...]] = {}
# Projections of attentions that read nothing but positions.
POSITION_LAYERS: dict[str, tuple[str, ...]] = {}
# Parts that evaluation never calls: class of the owner ('' is any) -> names of
# its attributes. They stay float where calibration does not reach them.
TRAINING_ONLY: dict[str, tuple[str, ...]] = {}


def register_counterpart(
    host: Host, counterpart: str | type[QuantModule], *, force: bool = False
) -> None:
    """Register the counterpart that replaces modules of one class.

    Subclasses count as long as they run its forward.

    >>> from taskptq.hosts import lookup
    >>> from taskptq.modules import QuantLinear
    >>> class Scorer(nn.Linear):
    ...     def forward(self, x):
    ...         return super().forward(x)
    >>> register_counterpart(Scorer, QuantLinear)
    >>> lookup(Scorer(4, 2)).__name__
    'QuantLinear'

    Args:
        host: Float class, or its dotted name.
        counterpart: Subclass of ``QuantModule``, or its dotted name.
        force: Replace a counterpart that is registered already.

    Raises:
        SettingError: If an argument is of another kind, or the class has a
            different counterpart.
    """
    if isinstance(counterpart, str):
        _check_dotted(counterpart, 'counterpart')
    else:
        Subclass(base=QuantModule).read(counterpart, name='counterpart')
    _put(COUNTERPARTS, host, counterpart, 'counterpart', force)


def register_block(host: Host) -> None:
    """Register a class as a reconstruction block, with its subclasses.

    Its layers are trained together against the block's output. Blocks that
    no one registers are found by a model's structure.

    Args:
        host: Class with a forward of its own, or its dotted name.

    Raises:
        SettingError: If it is neither.
    """
    BLOCKS.add(host_name(host))


def register_output_layer(pattern: str, *, host: Host | None = None) -> None:
    """Register last layers of heads, which get at least ``edge_bits``.

    Args:
        pattern: Pattern of layer names, shell style or a regular expression
            after ``re:``. With ``host`` it names layers within a module of
            that class, else qualified names in any model.
        host: Class that holds the layers, or its dotted name; its subclasses
            count.

    Raises:
        SettingError: If an argument is of another kind.
    """
    Pattern().read(pattern, name='pattern')
    _extend(OUTPUT_LAYERS, host, [pattern])


def register_output_sequence(
    pattern: str, *, host: Host | None = None
) -> None:
    """Register sequences whose last layer is an output of a head.

    Args:
        pattern: Pattern of the names of the sequences; see
            :func:`register_output_layer`.
        host: See :func:`register_output_layer`.

    Raises:
        SettingError: If an argument is of another kind.
    """
    Pattern().read(pattern, name='pattern')
    _extend(OUTPUT_SEQUENCES, host, [pattern])


def register_position_layer(pattern: str, *, host: Host | None = None) -> None:
    """Register projections of positions for an attention.

    They get at least the bits of the attention's queries.

    Args:
        pattern: See :func:`register_output_layer`.
        host: See :func:`register_output_layer`.

    Raises:
        SettingError: If an argument is of another kind.
    """
    Pattern().read(pattern, name='pattern')
    _extend(POSITION_LAYERS, host, [pattern])


def register_float(host: Host, reason: str, *, force: bool = False) -> None:
    """Register a class that stays float by design.

    Args:
        host: Class, or its dotted name.
        reason: Why, for the report of the swap.
        force: Replace a registered reason.

    Raises:
        SettingError: If an argument is of another kind, or another reason is
            registered.
    """
    Text(what='the reason in words').read(reason, name='reason')
    _put(KEPT_FLOAT, host, reason, 'reason', force)


def register_rows(host: Host) -> None:
    """Register a class whose inputs hold independent rows on their first axis.

    A unit of this class is trained on rows drawn from all images.

    Args:
        host: Class, or its dotted name.

    Raises:
        SettingError: If it is neither.
    """
    ROW_MODULES.add(host_name(host))


def register_replayed_input(
    host: Host, argument: str, *, force: bool = False
) -> None:
    """Register an input that selects rows, such as the boxes of a RoI head.

    Captures of the quantized model replay what the float model selected.

    Args:
        host: Class, or its dotted name; its subclasses count.
        argument: Name of the argument of its forward.
        force: Replace a registered argument.

    Raises:
        SettingError: If an argument is of another kind, or another one is
            registered.
    """
    Text(what='the name of an argument').read(argument, name='argument')
    _put(REPLAYED_INPUTS, host, argument, 'argument', force)


def register_training_only(*names: str, host: Host | None = None) -> None:
    """Register attributes that hold parts which evaluation never calls.

    Args:
        names: Names of the attributes.
        host: Class that has them, or its dotted name; None is any class.

    Raises:
        SettingError: If an argument is of another kind.
    """
    for name in names:
        Text(what='the name of an attribute').read(name, name='names')
    _extend(TRAINING_ONLY, host, names)


def register_computed_weight(
    host: Host, plain: type[nn.Module], *, force: bool = False
) -> None:
    """Register a layer that computes its weight anew at each call.

    Args:
        host: Class of the layer, or its dotted name.
        plain: Class that computes the same once that weight is stored.
        force: Replace a registered class.

    Raises:
        SettingError: If an argument is of another kind, or another class is
            registered.
    """
    Subclass(base=nn.Module).read(plain, name='plain')
    _put(COMPUTED_WEIGHTS, host, plain, 'plain', force)


def register_norm(host: Host) -> None:
    """Register a norm whose own forward is BatchNorm's in eval mode.

    Args:
        host: Class, or its dotted name.

    Raises:
        SettingError: If it is neither.
    """
    NORMS.add(host_name(host))


def register_conv_norm(host: Host, *, with_order: bool = False) -> None:
    """Register a class whose norms are folded into its convolutions.

    Args:
        host: Class whose forward calls norm i directly after conv i, or its
            dotted name. A subclass with another forward does not count.
        with_order: The class runs one conv, norm and activation in the order
            that its attribute ``order`` states, as mmcv's ConvModule does.

    Raises:
        SettingError: If an argument is of another kind.
    """
    Flag().read(with_order, name='with_order')
    table = CONV_MODULES if with_order else CONV_NORM_CLASSES
    table.add(host_name(host))


def host_name(host: Host) -> str:
    """Return the dotted name of a host class.

    Args:
        host: The class, or already its dotted name.

    Raises:
        SettingError: If it is neither.

    >>> host_name(nn.Linear)
    'torch.nn.modules.linear.Linear'
    """
    if isinstance(host, str):
        return _check_dotted(host, 'host')
    if isinstance(host, type) and issubclass(host, nn.Module):
        return dotted(host)
    raise refuse(
        'host', host, 'give a subclass of nn.Module, or its dotted name'
    )


def dotted(cls: type) -> str:
    """Return ``module.QualifiedName`` of a class."""
    return f'{cls.__module__}.{cls.__qualname__}'


def _check_dotted(name: str, argument: str) -> str:
    parts = name.replace('.<locals>', '').split('.')
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise refuse(
            argument, name, "give a class, or its dotted name 'module.Class'"
        )
    return name


def _put(
    table: dict[str, _Value],
    host: Host,
    value: _Value,
    argument: str,
    force: bool,
) -> None:
    """Enter a value, unless a different one is there."""
    Flag().read(force, name='force')
    name = host_name(host)
    known = table.setdefault(name, value)
    if force:
        table[name] = value
    elif known != value:
        raise refuse(
            argument,
            value,
            f'{name} is registered with {known!r}: leave this out, or give '
            'force=True to replace it',
        )


def _extend(
    table: dict[str, tuple[str, ...]], host: Host | None, names: Iterable[str]
) -> None:
    """Add names to those of a class, or of any."""
    key = '' if host is None else host_name(host)
    table[key] = tuple(dict.fromkeys((*table.get(key, ()), *names)))
