"""Check the runner of a quantization-aware training."""

from __future__ import annotations

from typing import Any

from mmengine.dist import get_world_size
from mmengine.hooks import EMAHook
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, Runner

from taskptq.core.settings import SettingError
from taskptq.engine.ptq_hook import PTQHook
from taskptq.prepare import QConfig

__all__ = ['dataset_meta', 'epochs_of', 'refuse_company', 'refuse_sparsity']


def refuse_company(runner: Runner) -> None:
    """Refuse hooks and settings that conflict with training quantizers.

    Args:
        runner: Runner that is about to train.

    Raises:
        ValueError: With the reason and what to do.
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
                f'QATHook cannot train with {type(hook).__name__}, which '
                'averages a copy of the float model: remove it from '
                'custom_hooks'
            )
        if isinstance(hook, PTQHook):
            raise ValueError(
                'QATHook cannot train with PTQHook, which quantizes float '
                'models without training: remove it from custom_hooks'
            )
    if runner.cfg.get('compile'):
        raise ValueError(
            'QATHook cannot train a compiled model, since it was compiled '
            'before its layers are swapped: remove compile'
        )


def refuse_sparsity(qconfig: QConfig) -> None:
    """Refuse masks, which training would not hold.

    Raises:
        SettingError: If the settings have any.
    """
    if qconfig.sparsity is not None:
        raise SettingError(
            'qconfig.sparsity',
            ' is for PTQHook: QATHook trains all weights, so remove it',
        )


def dataset_meta(runner: Runner) -> Any:
    """Return the metainfo of the runner's data, for the quantized file."""
    loops = (runner._train_loop, runner._val_loop, runner._test_loop)
    for loop in loops:
        if isinstance(loop, BaseLoop):
            return getattr(loop.dataloader.dataset, 'metainfo', {})
    return {}


def epochs_of(runner: Runner) -> int | None:
    """Return the epochs of a training; None if its loop counts none."""
    # Not runner.train_loop, which would build it before the float weights.
    loop = runner._train_loop
    if isinstance(loop, BaseLoop):
        return (
            loop.max_epochs if isinstance(loop, EpochBasedTrainLoop) else None
        )
    config = loop or {}
    return config.get('max_epochs') if config.get('by_epoch', True) else None
