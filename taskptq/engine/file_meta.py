"""The origin of a quantized file, as its ``meta`` records it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ['file_meta', 'recipe_label']

OWN_SETTINGS = 'own settings'


def file_meta(
    *,
    dataset_meta: Mapping[str, Any] | None = None,
    recipe: str | None = None,
    config: str | Path | None = None,
) -> dict[str, Any]:
    """Return the ``meta`` of a quantized file; what is unknown is left out.

    Args:
        dataset_meta: Classes and the like of the evaluation set.
        recipe: See :func:`recipe_label`.
        config: File of the float model's config; only its name is kept.
    """
    meta: dict[str, Any] = {}
    if dataset_meta is not None:
        meta['dataset_meta'] = dataset_meta
    if config is not None:
        # Not 'config', which mmengine's Runner runs as Python on a resume.
        meta['config_name'] = Path(config).stem
    if recipe is not None:
        meta['recipe'] = recipe
    return meta


def recipe_label(recipe: Any, **own: Any) -> str | None:
    """Return what a recipe is called; None where all of it is settings.

    Args:
        recipe: As users write it, see ``taskptq.engine.recipe_source``.
        own: Parts that were given in addition.

    >>> recipe_label('w4a4_qdrop'), recipe_label({'qconfig': {}})
    ('w4a4_qdrop', None)
    >>> recipe_label(['w4a4_qdrop', 'mine.py', {'loss': None}])
    'w4a4_qdrop + mine + own settings'
    """
    parts = recipe if isinstance(recipe, (list, tuple)) else [recipe]
    names = [
        Path(part).stem if _is_file(part) else str(part)
        for part in parts
        if isinstance(part, (str, Path))
    ]
    has_settings = any(isinstance(part, Mapping) for part in parts)
    if has_settings or any(part is not None for part in own.values()):
        names.append(OWN_SETTINGS)
    return None if names in ([], [OWN_SETTINGS]) else ' + '.join(names)


def _is_file(part: str | Path) -> bool:
    return isinstance(part, Path) or part.endswith('.py')
