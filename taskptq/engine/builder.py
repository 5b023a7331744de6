"""From a config's dicts to the objects of the lower layers.

The core knows no registry, so its classes are registered here, by the names
that ``taskptq.core.__all__`` lists. Look-ups happen in taskptq's registries
whatever the default scope of the surrounding project is.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.registry import Registry
from torch import nn

from taskptq import core
from taskptq.calibration.losses import MSEReconLoss
from taskptq.engine.teacher import Teacher, build_teacher_model
from taskptq.prepare.qconfig import QConfig
from taskptq.registry import (
    ADAPTERS,
    OBSERVERS,
    QUANTIZERS,
    RECON_LOSSES,
    REWRITES,
)

__all__ = [
    'build_adapter', 'build_loss', 'build_qconfig', 'build_rewrites',
    'register_core', 'resolve', 'to_plain'
]

KINDS: dict[str, Registry] = {'observer': OBSERVERS, 'quantizer': QUANTIZERS}


def register_core() -> None:
    """Register every observer and quantizer of the core, and the loss.

    AdaRoundQuantizer is no Quantizer: reconstruction makes it, no config.
    """
    for name in core.__all__:
        member = getattr(core, name)
        if not isinstance(member, type):
            continue
        for base, registry in ((core.Observer, OBSERVERS),
                               (core.Quantizer, QUANTIZERS)):
            if issubclass(member, base) and member is not base:
                registry.register_module(name=name, module=member, force=True)
    RECON_LOSSES.register_module(module=MSEReconLoss, force=True)


def resolve(kind: str, name: str) -> type:
    """Find the class behind a ``type`` of a qconfig.

    Args:
        kind: ``observer`` or ``quantizer``.
        name: Registered name, with or without the scope ``taskptq.``.

    Raises:
        ValueError: If no such class is registered.
    """
    registry = KINDS[kind]
    found = registry.get(name)
    if found is None:
        raise ValueError(
            f'{name!r} is not a registered {kind}; known are '
            f'{sorted(registry.module_dict)}, others need custom_imports')
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


def build_qconfig(config: Mapping[str, Any] | QConfig) -> QConfig:
    """Build the QConfig of a config's ``qconfig``.

    Raises:
        ValueError: If a key or a type is unknown.
    """
    if isinstance(config, QConfig):
        return config
    return QConfig.from_dict(to_plain(config), resolve=resolve)


def build_loss(config: Mapping[str, Any] | None) -> Any:
    """Build a ReconLoss; None stands for the mean squared error.

    A ``teacher=dict(config=..., checkpoint=...)`` of it is built first.
    """
    if config is None:
        return None
    settings = dict(config)
    teacher = settings.get('teacher')
    if isinstance(teacher, Mapping):
        model = build_teacher_model(teacher)
        name = f'{teacher["config"]} {teacher["checkpoint"]}'
        settings['teacher'] = Teacher(model, build_adapter(model), name=name)
    return _build(RECON_LOSSES, settings)


def build_rewrites(configs: Sequence[Mapping[str, Any]] | None) -> list[Any]:
    """Build the ModelRewrites, in the order in which they run."""
    return [_build(REWRITES, dict(config)) for config in configs or ()]


def _build(registry: Registry, settings: dict[str, Any]) -> Any:
    """Build a part, whose unknown arguments end in one sentence.

    Raises:
        ValueError: Naming the argument that its class does not take.
    """
    cls = registry.get(str(settings.get('type')))
    if cls is not None:
        takes = inspect.signature(cls).parameters
        known = [name for name, one in takes.items()
                 if one.kind is not inspect.Parameter.VAR_KEYWORD]
        for name in settings:
            if len(known) == len(takes) and name not in (*known, 'type'):
                raise ValueError(
                    f'{cls.__name__} takes no argument {name!r}: choose of '
                    f'{", ".join(known)}')
    return registry.build(settings)


def build_adapter(model: nn.Module) -> Any:
    """Make the adapter of the most specific class of a model.

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
