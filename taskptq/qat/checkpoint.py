"""The part of a training checkpoint that QATHook writes and reads.

A training checkpoint of mmengine gets one more key, ``taskptq_qat``: recipe,
report, structure, digest of the teacher, and the weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from taskptq.core.settings import shown
from taskptq.engine.builder import to_plain
from taskptq.engine.checkpoint_file import TRAINING_KEY
from taskptq.engine.recipe import Recipe
from taskptq.engine.restore import read_decisions
from taskptq.export.checkpoint import is_quantized
from taskptq.prepare import Decisions
from taskptq.qat.distillation import DistillationConfig
from taskptq.qat.stages import NAMED, Stages, named_stages
from taskptq.version import __version__

__all__ = [
    'add_entry',
    'check_continuation',
    'check_entry',
    'entry_decisions',
    'find_entry',
    'recorded_stage',
    'stage_of',
    'training_recipe',
]

SCHEMA = 1
# Stands where the weights are expected, which fit no float model: it stops a
# runner without the hook.
STATE_DICT_NOTE = (
    'taskptq training checkpoint: test it, resume it or start the next stage '
    'from it with a config that has QATHook in its custom_hooks'
)


def training_recipe(
    recipe: Recipe,
    *,
    stages: Stages,
    distillation: DistillationConfig | None,
    lr_mult: Mapping[str, float] | None,
    at: int = 0,
) -> dict[str, Any]:
    """Return the recipe that files record: a PTQ recipe plus ``training``.

    Args:
        recipe: Recipe without training.
        stages: The stages; a single one is recorded by its number.
        distillation: Settings, or None.
        lr_mult: Learning rate multiplier by kind of parameter, or None.
        at: Index of the stage that the training is in. Until the last one,
            ``qconfig`` is what this stage quantizes.

    Returns:
        The recipe in plain types.
    """
    settings = None
    if distillation is not None:
        settings = to_plain(distillation.to_dict())
    found = recipe.to_dict()
    several = {}
    if len(stages) > 1:
        several = {
            'stages': stages.to_list(),
            'at': at,
            'qconfig': found['qconfig'],
        }
        own = stages.items[at].qconfig
        if own is not None:
            found['qconfig'] = to_plain(own.to_dict())
    return {
        **found,
        'training': {
            'stage': stages.number,
            'distillation': settings,
            'lr_mult': lr_mult,
            **several,
        },
    }


def add_entry(
    checkpoint: dict[str, Any],
    *,
    recipe: Mapping[str, Any],
    report: Mapping[str, Any],
    structure: Mapping[str, Any],
    teacher: str | None,
) -> None:
    """Move a training checkpoint's weights into our entry.

    Args:
        checkpoint: Checkpoint about to be saved; changed in place.
        recipe: From :func:`training_recipe`.
        report: Report so far, plain types.
        structure: Decisions made by preparation, plain types.
        teacher: Digest of the float teacher's weights, or None.
    """
    checkpoint[TRAINING_KEY] = {
        'schema': SCHEMA,
        'version': __version__,
        'recipe': recipe,
        'report': report,
        'structure': structure,
        'teacher': teacher,
        'weights': checkpoint['state_dict'],
    }
    checkpoint['state_dict'] = STATE_DICT_NOTE


def entry_decisions(entry: Mapping[str, Any], model: nn.Module) -> Decisions:
    """Return the decisions of preparation that an entry records.

    Args:
        entry: Checked entry.
        model: Float model.
    """
    return read_decisions(
        {
            'weights': entry['weights'],
            'float': (),
            'structure': entry.get('structure'),
        },
        model,
    )


def find_entry(
    checkpoint: Mapping[str, Any], *, training: bool, resume: bool
) -> Mapping[str, Any] | None:
    """Return QATHook's checked entry of a checkpoint, None if it has none.

    Args:
        checkpoint: Loaded checkpoint.
        training: Whether the runner is about to train.
        resume: Whether the runner resumes a training.

    Raises:
        ValueError: If the checkpoint cannot be used for this, or the entry
            is invalid.
    """
    if training and is_quantized(checkpoint):
        raise ValueError(
            'training cannot start from a quantized file, which has no float '
            'weights: load the float checkpoint instead'
        )
    if TRAINING_KEY in checkpoint:
        entry: Mapping[str, Any] = checkpoint[TRAINING_KEY]
        check_entry(entry)
        return entry
    if training and resume:
        raise ValueError(
            'QATHook resumes only its own checkpoints, and this one is from '
            'another training: start from it with load_from and without '
            'resume'
        )
    return None


def check_entry(entry: Any) -> None:
    """Refuse a training checkpoint that was not written by QATHook.

    Args:
        entry: Value of the key ``taskptq_qat``, plain types.

    Raises:
        ValueError: If a part is invalid; names it.
    """
    if not isinstance(entry, Mapping):
        raise ValueError(entry_error('is not a dict'))
    found = entry.get('schema')
    if type(found) is not int or found != SCHEMA:
        raise ValueError(
            f'the training checkpoint has schema {shown(found)} (written by '
            f'taskptq {shown(entry.get("version"))}), but this version reads '
            f'schema {SCHEMA}'
        )
    for name in ('recipe', 'report', 'weights'):
        if not isinstance(entry.get(name), Mapping) or not entry[name]:
            raise ValueError(entry_error(f'has no {name}'))
    _check_recipe(entry['recipe'])
    if not isinstance(entry.get('structure', {}), Mapping):
        raise ValueError(entry_error('has a structure that is not a dict'))
    if not isinstance(entry.get('teacher'), str | None):
        raise ValueError(entry_error('has a teacher that is not a digest'))
    for name, value in entry['weights'].items():
        if not (isinstance(name, str) and is_dense(value)):
            raise ValueError(
                entry_error(f'has weights[{shown(name)}] that is not a tensor')
            )


def _check_recipe(recipe: Mapping[str, Any]) -> None:
    for name in ('qconfig', 'training'):
        if not isinstance(recipe.get(name), Mapping):
            raise ValueError(entry_error(f'has no recipe.{name}'))
    stage = recipe['training'].get('stage')
    if type(stage) is not int or stage not in NAMED:
        raise ValueError(
            entry_error(f'has recipe.training.stage={shown(stage)}')
        )
    at, stages = stage_of(recipe), recipe['training'].get('stages')
    if stages is not None and (
        not isinstance(stages, list)
        or type(at) is not int
        or not 0 <= at < len(stages)
    ):
        raise ValueError(
            entry_error(f'has recipe.training.at={shown(at)}, no stage of it')
        )


def stage_of(recipe: Mapping[str, Any]) -> int:
    """Return the index of the stage that a recipe of a file is in."""
    at: int = recipe['training'].get('at', 0)
    return at


def recorded_stage(training: Mapping[str, Any]) -> Stages:
    """Return the stage that a file's training was in, alone.

    Args:
        training: ``recipe.training`` of a checked entry.
    """
    several = training.get('stages')
    if several is None:
        return named_stages(training['stage'])
    part = several[training['at']].get('part')
    return Stages.from_list([{'part': part}])


def is_dense(value: Any) -> bool:
    """Return whether a value is a plain, dense tensor."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and not value.is_quantized
        and (
            not value.numel()
            or 0 not in value.stride()
            or value.untyped_storage().nbytes()
            >= value.numel() * value.element_size()
        )
    )


def entry_error(problem: str) -> str:
    """Format an error about a training checkpoint and what to do."""
    return (
        f'the training checkpoint is damaged: its entry '
        f'{TRAINING_KEY} {problem}; take another checkpoint of that '
        'training'
    )


def check_continuation(
    before: Mapping[str, Any], now: Mapping[str, Any], *, resume: bool
) -> None:
    """Refuse to continue from a checkpoint of another training.

    Args:
        before: Recipe of the checkpoint.
        now: Recipe of this training.
        resume: Whether to continue the same training.

    Raises:
        ValueError: If the recipes do not match; names what differs.
    """
    stage = before['training']['stage']
    asked = now['training']['stage']
    if not resume:
        if asked < stage:
            raise ValueError(
                f'stage={asked} starts from a float checkpoint, but this one '
                f'is from stage {stage}: set load_from to the float checkpoint'
            )
        return
    ends = [
        recipe['training'].get('qconfig', recipe['qconfig'])
        for recipe in (before, now)
    ]
    differ = [] if ends[0] == ends[1] else ['qconfig']
    differ += [] if stage == asked else ['stage']
    several = [recipe['training'].get('stages') for recipe in (before, now)]
    differ += [] if several[0] == several[1] else ['stages']
    if differ:
        raise ValueError(
            f'the checkpoint to resume differs from the config in '
            f'{" and ".join(differ)}: resume with the same settings, or start '
            'from it with load_from and without resume'
        )
