"""What a quantization-aware training asks of its runner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.dist import get_world_size
from mmengine.hooks import EMAHook
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop, Runner
from torch import Tensor

from taskptq.core.settings import shown
from taskptq.engine.calibration_data import EvaluationSource
from taskptq.engine.checkpoint_file import TRAINING_KEY
from taskptq.engine.ptq_hook import PTQHook, plain_pipeline
from taskptq.qat.model import STAGES

__all__ = [
    'check_continuation',
    'check_entry',
    'dataset_meta',
    'evaluation_source',
    'refuse_company',
]


def refuse_company(runner: Runner) -> None:
    """Refuse what cannot be trained together with quantizers.

    Args:
        runner: Runner that is about to train.

    Raises:
        ValueError: With the reason and the way out.
    """
    if get_world_size() > 1 or is_model_wrapper(runner.model):
        raise ValueError(
            'QATHook trains in one process, because DistributedDataParallel '
            'has wrapped the float parameters before any hook runs: start it '
            'without a launcher'
        )
    for hook in runner.hooks:
        if isinstance(hook, EMAHook):
            raise ValueError(
                f'QATHook cannot train beside {type(hook).__name__}, which '
                'averages a copy of the float model: take it out of '
                'custom_hooks'
            )
        if isinstance(hook, PTQHook):
            raise ValueError(
                'QATHook cannot train beside PTQHook, which quantizes float '
                'models without training: take it out of custom_hooks'
            )
    if runner.cfg.get('compile'):
        raise ValueError(
            'QATHook cannot train a compiled model, since it was compiled '
            'before its layers are swapped: leave compile out'
        )


def check_entry(entry: Any, *, schema: int) -> None:
    """Refuse a training checkpoint that was not written by QATHook.

    Args:
        entry: What lies under ``taskptq_qat``, plain types.
        schema: The one that this version reads.

    Raises:
        ValueError: Naming the part that is wrong.
    """
    if not isinstance(entry, Mapping):
        raise ValueError(entry_error('is not a dict'))
    found = entry.get('schema')
    if type(found) is not int or found != schema:
        raise ValueError(
            f'the training checkpoint has schema {shown(found)} (written by '
            f'taskptq {shown(entry.get("version"))}), but this version reads '
            f'schema {schema}'
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
    if type(stage) is not int or stage not in STAGES:
        raise ValueError(
            entry_error(f'has recipe.training.stage={shown(stage)}')
        )


def is_dense(value: Any) -> bool:
    """Whether a value is a plain tensor, of which every number is stored."""
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
    """Say what is wrong with a training checkpoint, and the way out."""
    return (
        f'the training checkpoint is damaged: its entry '
        f'{TRAINING_KEY} {problem}; take another checkpoint of that '
        'training'
    )


def check_continuation(
    before: Mapping[str, Any], now: Mapping[str, Any], *, resume: bool
) -> None:
    """Refuse to go on from a checkpoint of another training.

    Args:
        before: Recipe of the checkpoint.
        now: Recipe of this training.
        resume: Whether the same training is to be continued.

    Raises:
        ValueError: Naming what differs.
    """
    stage = before['training']['stage']
    asked = now['training']['stage']
    if not resume:
        if asked < stage:
            raise ValueError(
                f'stage={asked} starts from a float checkpoint, and this one '
                f'is of stage {stage}: give load_from the float one'
            )
        return
    differ = [] if before['qconfig'] == now['qconfig'] else ['qconfig']
    differ += [] if stage == asked else ['stage']
    if differ:
        raise ValueError(
            f'the checkpoint to resume was trained with another '
            f'{" and ".join(differ)} than the config has: resume with the '
            'same, or start from it with load_from and without resume'
        )


def evaluation_source(runner: Runner) -> EvaluationSource:
    """Return the evaluation whose transforms calibration takes over.

    Raises:
        ValueError: If the config has neither validation nor test.
    """
    if runner.val_loop is not None:
        return EvaluationSource.from_loader(
            runner.val_loop.dataloader, plain_pipeline=plain_pipeline(runner)
        )
    loader = runner.cfg.get('test_dataloader')
    if loader is None:
        raise ValueError(
            'the config has neither val_dataloader nor test_dataloader: '
            'calibration needs their transforms'
        )
    return EvaluationSource.from_config(loader)


def dataset_meta(runner: Runner) -> Any:
    """Return the metainfo of the runner's data, for the quantized file."""
    loops = (runner._train_loop, runner._val_loop, runner._test_loop)
    for loop in loops:
        if isinstance(loop, BaseLoop):
            return getattr(loop.dataloader.dataset, 'metainfo', {})
    return {}
