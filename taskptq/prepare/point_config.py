"""The quantizer and observer of one point, from its plain settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import taskptq.core as core
from taskptq.core import (
    FloatQuantizer,
    Observer,
    Quantizer,
    QuantizerConfig,
    QuantSpec,
)
from taskptq.core.base_quantizer import CodedQuantizer
from taskptq.core.settings import (
    Flag,
    Text,
    check_arguments,
    refuse,
    refusing,
    within,
)
from taskptq.core.spec import MAX_WEIGHT_BITS, MIN_BITS
from taskptq.prepare.points import HEADED, OWN_KEYS, SPEC_KEYS

Resolve = Callable[[str, str], type]


def resolve_imported(kind: str, name: str) -> type:
    """Find a quantizer or observer by the name of its class.

    Only classes that have been imported are found; the core's come first.

    Raises:
        ValueError: If there is none.
    """
    base: type = {'quantizer': Quantizer, 'observer': Observer}[kind]
    known = {found.__name__: found for found in _subclasses(base)}
    known |= {
        key: value
        for key, value in vars(core).items()
        if isinstance(value, type)
        and issubclass(value, base)
        and value is not base
    }
    if name not in (*known, base.__name__):
        raise ValueError(
            f'there is no {kind} {name!r}: choose one of {", ".join(known)}, '
            'or import the module that defines it first'
        )
    return known.get(name, base)


def _subclasses(base: type) -> Iterator[type]:
    children: list[type] = base.__subclasses__()
    for found in children:
        yield found
        yield from _subclasses(found)


def quantizer_config(
    point: str, settings: Any, *, resolve: Resolve
) -> QuantizerConfig | None:
    """Return how one point of a layer is quantized.

    Args:
        point: ``weight``, ``activation``, an operand of attention
            (``operand`` is ``attention``), or ``softmax``.
        settings: Complete settings of the point; False leaves it float.
        resolve: (kind, name) -> class, for quantizers and observers.

    Raises:
        SettingError: Naming the setting that cannot be.
    """
    if settings is False:
        return None
    settings = dict(settings)
    observer = dict(settings.pop('observer'))
    spec = {key: settings.pop(key) for key in SPEC_KEYS}
    flag = Flag()
    per_channel = flag.read(settings.pop('per_channel'), name='per_channel')
    per_head = flag.read(settings.pop('per_head', False), name='per_head')
    if point == 'operand':
        point = 'attention'
    if per_channel and point not in ('weight', 'activation'):
        raise refuse(
            'per_channel',
            per_channel,
            'give it to weights and activations only; operands of '
            'attention have per_head',
        )
    if point in HEADED:
        per_channel = per_head
    quantizer = _find(
        'quantizer', settings.pop('type'), Quantizer, resolve=resolve
    )
    check_arguments(
        quantizer,
        settings,
        name='',
        own=('self', 'spec', 'observer'),
        also=OWN_KEYS,
    )
    with within('observer'):
        observer_type = _find(
            'observer', observer.pop('type'), Observer, resolve=resolve
        )
    check_arguments(
        observer_type,
        observer,
        name='observer',
        own=('self', 'spec', 'num_heads', 'make', 'inner'),
        also=('type',),
    )
    whole = QuantSpec(**spec)
    quantizer, settings = quantizer.for_spec(whole, settings)
    config = QuantizerConfig(
        spec=whole,
        per_channel=per_channel,
        quantizer=quantizer,
        quantizer_kwargs=settings,
        observer=observer_type,
        observer_kwargs=observer,
    )
    return _of_point(config, point, per_head=per_head)


def _find(kind: str, name: Any, base: type, *, resolve: Resolve) -> Any:
    """Find the class of a point's ``type``."""
    name = Text(what=f'the name of a registered {kind}').read(
        name, name='type'
    )
    with refusing('type', name):
        found = resolve(kind, name)
    if (
        not (isinstance(found, type) and issubclass(found, base))
        or found is base
    ):
        raise refuse(
            'type',
            name,
            f'give the name of a registered subclass of {base.__name__}',
        )
    return found


def _of_point(
    config: QuantizerConfig, point: str, *, per_head: bool
) -> QuantizerConfig:
    """Refuse what a point cannot have; hand ``per_head`` to its searcher."""
    if per_head and point not in HEADED:
        raise refuse(
            'per_head',
            True,
            f'give it to {", ".join(HEADED)} only; weights have per_channel',
        )
    _check_types(config, point)
    head_quantizer = config.observer.head_quantizer
    if not head_quantizer:
        return config
    own = config.observer_kwargs.get('per_head', False) is True
    if (per_head or own) and not config.quantizer.takes_head_grids:
        raise refuse(
            'per_head' if per_head else 'observer.per_head',
            True,
            f'give the type {head_quantizer} as well, or for uniform grids '
            'the MSEObserver',
        )
    if not per_head:
        return config
    # It sees all heads at once, and keeps them apart by itself.
    kwargs = {**config.observer_kwargs, 'per_head': True}
    return replace(config, per_channel=False, observer_kwargs=kwargs)


def _check_types(config: QuantizerConfig, point: str) -> None:
    """Refuse grids that cannot hold what a point carries."""
    quantizer, observer = config.quantizer, config.observer
    kinds_of_weight = (CodedQuantizer, FloatQuantizer)
    if point == 'weight' and not issubclass(quantizer, kinds_of_weight):
        raise refuse(
            'type',
            quantizer.__name__,
            'give an AffineQuantizer or a LevelQuantizer, since weights are '
            'stored as integers (a FloatQuantizer keeps them float)',
        )
    kinds: tuple[tuple[str, type[Quantizer] | type[Observer]], ...] = (
        ('type', quantizer),
        ('observer.type', observer),
    )
    for key, found in kinds:
        if found.points is not None and point not in found.points:
            raise refuse(
                key,
                found.__name__,
                f'{found.__name__} is for {" and ".join(found.points)} only: '
                'give it there, and another type here',
            )
    spec = config.spec
    if point == 'weight' and spec.num_bits > MAX_WEIGHT_BITS:
        raise refuse(
            'num_bits',
            spec.num_bits,
            f'give weights {MIN_BITS} to {MAX_WEIGHT_BITS} bits; only '
            'activations have more',
        )
    if point == 'weight' and spec.symmetric and spec.signed is False:
        raise refuse(
            'signed',
            False,
            'give None or True, since a symmetric grid without a sign holds '
            'no negative weights',
        )
