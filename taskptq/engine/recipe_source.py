"""A recipe as users write it: a name, a dict, a file, or a list of these."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.logging import print_log

from taskptq.core.setting_error import SettingError, check_keys, refuse
from taskptq.engine.config_file import SUFFIXES, read_config
from taskptq.recipes import KEYS, merge, resolve

__all__ = ['read_recipe', 'with_recipe']

# Other keys that a file may set, already handled by mmengine.
NOT_OF_A_RECIPE = ('custom_imports',)
# How names end whose recipes train a model.
TRAINED = '-qat'
ALLOWED = (
    'give a name such as w4a4_qdrop, a dict, the path of a file that sets '
    'qconfig, or a list of these'
)


def read_recipe(recipe: Any) -> dict[str, Any]:
    """Read a recipe.

    Args:
        recipe: Name, see ``taskptq.recipes``; dict of ``KEYS``; path of a
            config file that sets them; or a list of these, merged in order
            like mm configs, including ``_delete_``.

    Returns:
        ``qconfig`` and the other ``KEYS`` that are set.

    Raises:
        FileNotFoundError: If the file does not exist.
        SettingError: If it is none of these, or sets no ``qconfig``.
    """
    parts = recipe if isinstance(recipe, (list, tuple)) else [recipe]
    merged: dict[str, Any] = {}
    for part in parts:
        merged = merge(merged, _read_part(part))
    if not isinstance(merged.get('qconfig'), Mapping):
        raise SettingError('recipe', f' sets no qconfig: {ALLOWED}')
    return merged


def _read_part(part: Any) -> dict[str, Any]:
    """Read a name, a dict or a file."""
    if isinstance(part, Mapping):
        check_keys(part, KEYS, name='recipe')
        return dict(part)
    if not isinstance(part, (str, Path)):
        raise refuse('recipe', part, ALLOWED)
    if not is_path(part):
        return resolve(str(part))
    content = read_config(part).to_dict()
    for key in NOT_OF_A_RECIPE:
        content.pop(key, None)
    check_keys(content, KEYS, name=f'recipe {part}')
    qconfig = content.get('qconfig')
    if not isinstance(qconfig, Mapping | None):
        raise refuse(f'recipe {part}: qconfig', qconfig, 'give a dict')
    return content


def is_path(part: str | Path) -> bool:
    """Return whether a text is meant as a path, not as a recipe's name."""
    return isinstance(part, Path) or part.endswith(SUFFIXES) or '/' in part


def warn_of_training(recipe: Any) -> None:
    """Log a warning for names whose method is meant to be trained.

    Args:
        recipe: See :func:`read_recipe`; valid.
    """
    parts = recipe if isinstance(recipe, (list, tuple)) else [recipe]
    for part in parts:
        if isinstance(part, str) and part.endswith(TRAINED):
            print_log(
                f'recipe={part!r} is for training (QATHook, taskptq train): '
                'without it only ranges are calibrated',
                logger='current',
                level=logging.WARNING,
            )


def with_recipe(recipe: Any, *, owner: str, **given: Any) -> dict[str, Any]:
    """Return settings, with None replaced by the recipe's values.

    Args:
        recipe: See :func:`read_recipe`; None adds nothing.
        owner: Name of the caller, for errors.
        given: Every part of a recipe that the caller uses.

    Raises:
        SettingError: If the recipe sets a part that the caller does not use;
            see also :func:`read_recipe`.
    """
    if recipe is None:
        return given
    parts = read_recipe(recipe)
    if owner != 'QATHook':
        warn_of_training(recipe)
    for key, value in parts.items():
        if key not in given and value:
            other = 'QATHook' if key == 'distillation' else 'PTQHook'
            raise SettingError(
                'recipe',
                f' sets {key}, which {owner} has no use for: use '
                f'{other}, or a recipe without {key} (names without a '
                'method are for PTQHook)',
            )
    return {
        key: parts.get(key) if value is None else value
        for key, value in given.items()
    }
