"""Check a recipe's parts before any work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from taskptq.core.settings import SEED, Flag, Items, Table, Text, refusing
from taskptq.engine.builder import build_loss, build_rewrites, spelled_out
from taskptq.engine.teacher import KEYS, Teacher

__all__ = ['check_recipe', 'check_teacher']


def check_recipe(
    *,
    reconstruction: Any = None,
    loss: Any = None,
    rewrites: Any = None,
    seed: Any = 0,
) -> None:
    """Check a recipe's parts by building them once, without a teacher.

    ``ReconstructionConfig`` checks the numbers of ``reconstruction``.

    Args:
        reconstruction: Settings, or None.
        loss: Config of a ReconLoss, or None.
        rewrites: Configs of ModelRewrites, or None.
        seed: Seed of the recipe.

    Raises:
        SettingError: If a part or an argument is invalid; names it.
    """
    SEED.read(seed, name='seed')
    Table(optional=True).read(reconstruction, name='reconstruction')
    if reconstruction is not None:
        _check_loss(reconstruction.get('loss'), name='reconstruction.loss')
    _check_loss(loss, name='loss')
    parts = Items(
        of=Table(required=('type',)),
        what='a list of dict(type=...)',
        optional=True,
    )
    if isinstance(rewrites, (list, tuple)):
        rewrites = [spelled_out(rewrite) for rewrite in rewrites]
    parts.read(rewrites, name='rewrites')
    for number, rewrite in enumerate(rewrites or ()):
        with refusing(f'rewrites[{number}]', rewrite):
            build_rewrites([rewrite])


def _check_loss(config: Any, *, name: str) -> None:
    """Build a loss once, with an empty teacher if it has one."""
    config = spelled_out(config)
    settings = Table(required=('type',), optional=True).read(config, name=name)
    if settings is None:
        return
    teacher = settings.get('teacher')
    if isinstance(teacher, Mapping):
        check_teacher(teacher, name=f'{name}.teacher')
        settings['teacher'] = Teacher(nn.Identity(), None, name='')
    with refusing(name, config):
        build_loss(settings)


def check_teacher(teacher: Any, *, name: str) -> None:
    """Check the config of another float model.

    Its files need to exist only when it is used, not when a quantized file
    is tested.

    Args:
        teacher: ``dict(config=..., checkpoint=...)``.
        name: Its dotted name.

    Raises:
        SettingError: If a key is invalid; names it.
    """
    table = Table(keys=tuple(sorted(KEYS)), required=('checkpoint', 'config'))
    table.read(teacher, name=name)
    for key in ('checkpoint', 'config'):
        Text(path=True).read(teacher[key], name=f'{name}.{key}')
    trust = teacher.get('trust_checkpoint', False)
    Flag().read(trust, name=f'{name}.trust_checkpoint')
