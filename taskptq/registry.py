"""Registries of taskptq, and the checks that run before anything is built.

mmengine imports this module when a config says ``type='taskptq.PTQHook'``,
since the scope has the package's name. Importing it is therefore cheap; the
classes of a registry are imported from its ``locations`` at the first
look-up.

Kinds that mmengine knows (hooks, models, metrics, ...) are children of its
registries. The others (observers, quantizers, ...) are roots: an mmengine
registry takes only one child per scope, and a child would search the scope of
the surrounding project first.
"""

from __future__ import annotations

import importlib
import importlib.util
from importlib import metadata
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch

try:
    from mmengine import registry as mmengine_registry
    from mmengine.logging import HistoryBuffer
    from mmengine.registry import Registry
    from mmengine.utils import digit_version
except ModuleNotFoundError as error:
    if error.name != 'mmengine':
        raise
    raise RuntimeError(
        'taskptq needs mmengine, which is not installed: pip install '
        'onedl-mmengine (or the original mmengine)'
    ) from error

__all__ = [
    'ADAPTERS',
    'HOOKS',
    'LOOPS',
    'METRICS',
    'MODELS',
    'NETWORK_PARTS',
    'OBSERVERS',
    'QUANTIZERS',
    'RECON_LOSSES',
    'REWRITES',
    'TASK_UTILS',
    'TRANSFORMS',
    'VISUALIZERS',
    'check_versions',
    'registered',
    'registered_name',
]

SCOPE = 'taskptq'

# Import name -> (distributions that provide it, lowest version, first version
# that is too new). The distribution is the maintained fork or the original.
SUPPORTED_VERSIONS: dict[str, tuple[tuple[str, ...], str, str]] = {
    'mmengine': (
        ('onedl-mmengine', 'mmengine', 'mmengine-lite'),
        '0.10.0',
        '1.0.0',
    ),
    'mmcv': (('onedl-mmcv', 'mmcv', 'mmcv-lite'), '2.0.0', '3.0.0'),
    'mmdet': (('onedl-mmdetection', 'mmdet'), '3.0.0', '4.0.0'),
    'mmseg': (('onedl-mmsegmentation', 'mmsegmentation'), '1.0.0', '2.0.0'),
}


def installed_version(name: str) -> str | None:
    """Return the version of an OpenMMLab package, or None if it is absent.

    The package itself is imported only when it has no distribution metadata
    (a source tree on ``PYTHONPATH``).

    Args:
        name: Import name, a key of ``SUPPORTED_VERSIONS``.
    """
    if importlib.util.find_spec(name) is None:
        return None
    for distribution in SUPPORTED_VERSIONS[name][0]:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return str(importlib.import_module(name).__version__)


def check_versions() -> None:
    """Refuse unsupported OpenMMLab versions; absent packages are fine.

    Raises:
        RuntimeError: If an installed package is outside its range. mmengine
            would swallow an ImportError while it looks up a scope.
    """
    for name, (_, lowest, too_new) in SUPPORTED_VERSIONS.items():
        version = installed_version(name)
        if version is None:
            continue
        in_range = (
            digit_version(lowest)
            <= digit_version(version)
            < digit_version(too_new)
        )
        if not in_range:
            raise RuntimeError(
                f'taskptq needs {name} >= {lowest}, < {too_new}, but '
                f'{version} is installed; install a version in this range.'
            )


def statistic_method(owner: object, name: str) -> Any:
    """Stand in for ``getattr`` in a ``weights_only`` load.

    A pickled HistoryBuffer names its statistics as ``getattr(HistoryBuffer,
    'mean')``. A general ``getattr`` would allow far more.

    Args:
        owner: Must be the HistoryBuffer class.
        name: Must be the name of one of its public methods.

    Raises:
        UnpicklingError: If anything else is asked for.
    """
    method = vars(HistoryBuffer).get(name)
    if owner is not HistoryBuffer or name.startswith('_') or method is None:
        raise UnpicklingError(
            f'The checkpoint uses attribute {name!r} of {owner!r}; only the '
            'statistics of an mmengine HistoryBuffer are allowed.'
        )
    return method


def allow_history_buffers() -> None:
    """Let ``torch.load(weights_only=True)`` read mmengine's training logs.

    Training checkpoints hold HistoryBuffers with numpy arrays and scalars.
    numpy 2 renamed the module of their constructors; both names are allowed.
    """
    rebuild_array = np.zeros(1).__reduce__()[0]
    rebuild_scalar = np.float64(0).__reduce__()[0]
    renamed = [
        (function, f'numpy.{core}.multiarray.{name}')
        for core in ('core', '_core')
        for function, name in (
            (rebuild_array, '_reconstruct'),
            (rebuild_scalar, 'scalar'),
        )
    ]
    dtypes = [type(np.dtype(kind)) for kind in ('f4', 'f8', 'i4', 'i8')]
    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            (statistic_method, 'builtins.getattr'),
            np.ndarray,
            np.dtype,
            *dtypes,
            *renamed,
        ]
    )


def registered(registry: Registry, name: str) -> type | None:
    """Look up a registered class without importing anything by its name.

    ``Registry.get`` imports the module of a dotted name, which runs its code;
    names from files must not reach it.

    Args:
        registry: Registry to search; its own locations are imported first.
        name: Registered name, with or without the scope ``taskptq.``.

    Returns:
        The class, or None.
    """
    registry.import_from_location()
    known: dict[str, type] = registry.module_dict
    return known.get(name) or known.get(name.removeprefix(f'{SCOPE}.'))


def registered_name(registry: Registry, cls: type) -> str:
    """Return the name that files use for a class.

    Args:
        registry: Registry to search; its own locations are imported first.
        cls: The class.

    Raises:
        ValueError: If the class is not registered.
    """
    registry.import_from_location()
    known = registry.module_dict
    if known.get(cls.__name__) is cls:
        return cls.__name__
    for name, found in known.items():
        if found is cls:
            return str(name)
    raise ValueError(
        f'{cls.__module__}.{cls.__qualname__} is not a registered '
        f'{registry.name}: decorate it with register_module() of that '
        'registry in taskptq.registry, and name its module in custom_imports'
    )


def build_in_own_scope(
    cfg: dict[str, Any], *args: Any, registry: Registry, **kwargs: Any
) -> Any:
    """Build from a registry, independently of mmengine's default scope.

    Args:
        cfg: ``type`` (a registered name or the class itself) and keyword
            arguments.
        *args: Positional arguments of the class, e.g. a model.
        registry: Registry to search; passed by ``Registry.build``.
        **kwargs: Further keyword arguments; ``cfg`` takes precedence.

    Raises:
        KeyError: If ``cfg`` has no ``type`` or the registry doesn't know it.
    """
    if 'type' not in cfg:
        raise KeyError(f'A {registry.name} needs the key "type", got {cfg}.')
    kind = cfg['type']
    builder = registered(registry, kind) if isinstance(kind, str) else kind
    if builder is None:
        raise KeyError(
            f'{kind!r} is not a registered {registry.name}; known are '
            f'{sorted(registry.module_dict)}.'
        )
    options = {key: value for key, value in cfg.items() if key != 'type'}
    return builder(*args, **{**kwargs, **options})


def _child(kind: str, *locations: str) -> Registry:
    """Create our child of mmengine's registry ``kind``, e.g. ``HOOKS``."""
    parent = getattr(mmengine_registry, kind)
    return Registry(
        parent.name, parent=parent, scope=SCOPE, locations=[*locations]
    )


def _root(name: str, *locations: str) -> Registry:
    """Create a registry of a kind that mmengine does not have."""
    return Registry(
        name,
        build_func=build_in_own_scope,
        scope=SCOPE,
        locations=[*locations],
    )


check_versions()
allow_history_buffers()

HOOKS = _child('HOOKS', 'taskptq.engine', 'taskptq.qat')
LOOPS = _child('LOOPS', 'taskptq.engine', 'taskptq.qat')
METRICS = _child('METRICS', 'taskptq.engine')
MODELS = _child('MODELS', 'taskptq.models')
TASK_UTILS = _child('TASK_UTILS', 'taskptq.models')
TRANSFORMS = _child('TRANSFORMS', 'taskptq.robustness')
VISUALIZERS = _child('VISUALIZERS', 'taskptq.engine')

# Core classes have no decorator; taskptq.engine.builder registers them.
OBSERVERS = _root('observer', 'taskptq.engine.builder', 'taskptq.methods')
QUANTIZERS = _root('quantizer', 'taskptq.engine.builder', 'taskptq.methods')
RECON_LOSSES = _root(
    'reconstruction loss', 'taskptq.engine.builder', 'taskptq.methods'
)
REWRITES = _root('model rewrite', 'taskptq.engine.builder', 'taskptq.methods')
ADAPTERS = _root(
    'adapter',
    'taskptq.engine.adapters',
    'taskptq.engine.detr_adapters',
    'taskptq.engine.grid_adapters',
)
NETWORK_PARTS = _root(
    'network parts',
    'taskptq.engine.dense_parts',
    'taskptq.engine.detr_parts',
    'taskptq.engine.inner_parts',
    'taskptq.engine.mask_parts',
    'taskptq.engine.segmentor_parts',
    'taskptq.engine.two_stage_parts',
)
