"""Build the objects of the lower layers from a config's dicts.

The core knows no registry, so its classes are registered here, under the names
in ``taskptq.core.__all__``. Look-ups use taskptq's registries, independently
of the surrounding project's default scope.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from mmengine.registry import Registry
from mmengine.utils import get_object_from_string
from torch import nn

from taskptq import core
from taskptq.analysis.mixed_precision.settings import MixedPrecisionConfig
from taskptq.core.settings import shown, within
from taskptq.engine.short_names import find_by_short_name, nearest_names
from taskptq.engine.teacher import Teacher, build_teacher_model
from taskptq.prepare.points import POINTS
from taskptq.prepare.qconfig import QConfig
from taskptq.reconstruction.losses import MSEReconLoss
from taskptq.registry import (
    ADAPTERS,
    OBSERVERS,
    QUANTIZERS,
    RECON_LOSSES,
    REWRITES,
    registered,
    registered_name,
)

__all__ = [
    'build_adapter',
    'build_loss',
    'build_mixed_precision',
    'build_qconfig',
    'build_rewrites',
    'find_class',
    'register_core',
    'registered_part',
    'resolve',
    'spelled_out',
    'to_plain',
]

KINDS: dict[str, Registry] = {'observer': OBSERVERS, 'quantizer': QUANTIZERS}
BASES: dict[str, type] = {
    'observer': core.Observer,
    'quantizer': core.Quantizer,
}
# Errors caused by the malformed recipe of a forged file.
UNREADABLE = (
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
)


def register_core() -> None:
    """Register every observer and quantizer of the core, and the loss.

    LearnedRounding is not a Quantizer: reconstruction creates it, not a
    config.
    """
    for name in core.__all__:
        member = getattr(core, name)
        if not isinstance(member, type):
            continue
        for base, registry in (
            (core.Observer, OBSERVERS),
            (core.Quantizer, QUANTIZERS),
        ):
            if issubclass(member, base) and member is not base:
                registry.register_module(name=name, module=member, force=True)
    RECON_LOSSES.register_module(module=MSEReconLoss, force=True)


def resolve(kind: str, name: str, *, from_file: bool = False) -> type:
    """Find the class behind a ``type`` of a qconfig.

    Args:
        kind: ``observer`` or ``quantizer``.
        name: Registered name, with or without the scope ``taskptq.``; in a
            config also its short name, or the dotted path of a registered
            class.
        from_file: Whether the name comes from a file. Then it must be a
            registered name, since importing a module runs its code.

    Raises:
        ValueError: If no such class is registered, or it is of another kind.
    """
    found = find_class(KINDS[kind], name, from_file=from_file)
    if not (isinstance(found, type) and issubclass(found, BASES[kind])):
        raise ValueError(
            f'{name!r} is registered as {kind}, but is not a subclass of '
            f'taskptq.core.{BASES[kind].__name__}: derive it from that class'
        )
    return found


def find_class(
    registry: Registry, name: Any, *, from_file: bool = False
) -> type:
    """Find a registered class.

    Args:
        registry: Registry to search.
        name: Its name; in a config also its short name, its dotted path, or
            the class.
        from_file: See :func:`resolve`.

    Raises:
        ValueError: If no such class is registered.
    """
    kind = registry.name
    if isinstance(name, type) and not from_file:
        registered_name(registry, name)
        return name
    if not isinstance(name, str):
        raise ValueError(
            f'type={shown(name)}: give the name of a registered {kind}'
        )
    found = registered(registry, name)
    if found is None and from_file:
        raise ValueError(
            f'the file needs the {kind} {shown(name)}, which is not '
            'registered here: add the project that defines it to '
            'custom_imports'
        )
    if found is None:
        found = find_by_short_name(registry, name.removeprefix('taskptq.'))
    if found is None and '.' in name.removeprefix('taskptq.'):
        imported = get_object_from_string(name)
        if isinstance(imported, type):
            registered_name(registry, imported)
            return imported
    if found is None:
        near = ', '.join(nearest_names(registry, name))
        raise ValueError(
            f'{shown(name)} is not a registered {kind} (the nearest are '
            f'{near}): choose one of these, or name the project that defines '
            'it in custom_imports'
        )
    return found


def to_plain(value: Any) -> Any:
    """Copy a config's value as dicts, lists and scalars.

    Args:
        value: Nested ConfigDicts, lists, tuples and scalars; a class becomes
            its dotted name.
    """
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, type):
        return f'{value.__module__}.{value.__qualname__}'
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if value is None:
        return None
    if hasattr(value, 'tolist'):
        return to_plain(value.tolist())
    return str(value)


def build_qconfig(
    config: Mapping[str, Any] | QConfig, *, from_file: bool = False
) -> QConfig:
    """Build the QConfig of a config's ``qconfig``.

    Args:
        config: Plain settings, see ``QConfig.from_dict``; or a QConfig.
        from_file: Whether they come from a file, see :func:`resolve`.

    Returns:
        A QConfig with registered names, since a file with other names could
        not be read again.

    Raises:
        ValueError: If a key or a type is unknown.
    """
    if isinstance(config, QConfig):
        plain = to_plain(config.to_dict())
        if config.products is not None:
            plain['products'] = config.products
        if registered_types(plain, from_file=from_file) == plain:
            return config
        config = plain
    try:
        named = registered_types(to_plain(config), from_file=from_file)
        return QConfig.from_dict(
            named,
            resolve=partial(resolve, from_file=from_file),
        )
    except UNREADABLE as error:
        if not from_file:
            raise
        raise ValueError(
            f'the recipe in the file cannot be read: {error!r}'
        ) from error


def build_mixed_precision(config: Mapping[str, Any]) -> MixedPrecisionConfig:
    """Read a recipe's ``mixed_precision``, its cures with registered names.

    Args:
        config: Plain settings, see ``MixedPrecisionConfig``.

    Raises:
        ValueError: If a key, a value or a type is unknown.
    """
    read = MixedPrecisionConfig.from_dict(to_plain(config))
    if not read.cures:
        return read
    cures = [registered_types(cure, from_file=False) for cure in read.cures]
    with within('mixed_precision.cures'):
        build_qconfig({'overrides': [{'pattern': '*', **c} for c in cures]})
    return replace(read, cures=tuple(cures))


def registered_types(config: Any, *, from_file: bool) -> Any:
    """Copy a qconfig with every ``type`` as its registered name.

    Malformed parts are left for ``QConfig.from_dict`` to refuse.

    Args:
        config: Plain settings of all points and ``overrides``.
        from_file: See :func:`resolve`.

    Raises:
        ValueError: If a type is not registered.
    """
    if not isinstance(config, Mapping):
        raise ValueError(
            f'qconfig={config!r}: give a dict of points and their settings'
        )
    named = _named_points(config, where='qconfig', from_file=from_file)
    overrides = config.get('overrides')
    if isinstance(overrides, Sequence) and not isinstance(overrides, str):
        named['overrides'] = [
            _named_points(
                override,
                where=f'qconfig.overrides {override.get("pattern")!r}',
                from_file=from_file,
            )
            if isinstance(override, Mapping)
            else override
            for override in overrides
        ]
    return named


def _named_points(
    settings: Mapping[str, Any], *, where: str, from_file: bool
) -> dict[str, Any]:
    """Copy points' settings, with types as registered names."""
    named = dict(settings)
    for point in POINTS:
        given = spelled_out(settings.get(point))
        if not isinstance(given, Mapping):
            continue
        try:
            named[point] = _named(given, 'quantizer', from_file=from_file)
            observer = spelled_out(given.get('observer'))
            if isinstance(observer, Mapping):
                named[point]['observer'] = _named(
                    observer, 'observer', from_file=from_file
                )
        except ValueError as error:
            raise ValueError(f'{where}, {point}: {error}') from error
    return named


def _named(
    settings: Mapping[str, Any], kind: str, *, from_file: bool
) -> dict[str, Any]:
    """Copy settings, with their ``type``, if any, as its registered name."""
    if settings.get('type') is None:
        return dict(settings)
    found = resolve(kind, settings['type'], from_file=from_file)
    return {**settings, 'type': registered_name(KINDS[kind], found)}


def spelled_out(part: Any) -> Any:
    """Return a part that is given by its name alone as ``dict(type=...)``.

    >>> spelled_out('mse')
    {'type': 'mse'}
    """
    return {'type': part} if isinstance(part, str) else part


def registered_part(registry: Registry, config: Any) -> Any:
    """Copy the config of a part, plain, with its type as it is registered.

    Args:
        registry: Registry of the part.
        config: Name, dict, or None.

    Raises:
        ValueError: If its class is not registered.
    """
    settings = to_plain(spelled_out(config))
    if not isinstance(settings, Mapping) or 'type' not in settings:
        return settings
    found = find_class(registry, settings['type'])
    return {**settings, 'type': registered_name(registry, found)}


def build_loss(config: Mapping[str, Any] | str | None) -> Any:
    """Build a ReconLoss; None is the mean squared error.

    Its ``teacher=dict(config=..., checkpoint=...)`` is built first.
    """
    if config is None:
        return None
    settings = dict(spelled_out(config))
    teacher = settings.get('teacher')
    if isinstance(teacher, Mapping):
        model = build_teacher_model(teacher)
        name = f'{teacher["config"]} {teacher["checkpoint"]}'
        settings['teacher'] = Teacher(model, build_adapter(model), name=name)
    return _build(RECON_LOSSES, settings)


def build_rewrites(
    configs: Sequence[Mapping[str, Any] | str] | None,
) -> list[Any]:
    """Build the ModelRewrites, in the order in which they run."""
    return [
        _build(REWRITES, dict(spelled_out(config))) for config in configs or ()
    ]


def _build(registry: Registry, settings: dict[str, Any]) -> Any:
    """Build a part; an unknown argument is an error of one sentence.

    Raises:
        ValueError: If its class is not registered, or does not take an
            argument.
    """
    cls = find_class(registry, settings.get('type'))
    takes = inspect.signature(cls).parameters
    known = [
        name
        for name, one in takes.items()
        if one.kind is not inspect.Parameter.VAR_KEYWORD
    ]
    for name in settings:
        if len(known) == len(takes) and name not in (*known, 'type'):
            raise ValueError(
                f'{cls.__name__} takes no argument {name!r}: choose from '
                f'{", ".join(known)}'
            )
    return registry.build({**settings, 'type': cls})


def build_adapter(model: nn.Module) -> Any:
    """Build the adapter of a model's most specific registered class.

    Args:
        model: Detector, segmentor or any other model.
    """
    ADAPTERS.import_from_location()
    known = ADAPTERS.module_dict
    for cls in type(model).__mro__:
        adapter = known.get(f'{cls.__module__}.{cls.__qualname__}')
        if adapter is not None:
            return adapter(model)
    return known['torch.nn.modules.module.Module'](model)


register_core()
