"""The hook that quantizes a model inside mmengine's test and val runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.hooks import EMAHook, Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import BaseLoop, Runner
from torch import nn

from taskptq.engine.calibration_data import (
    CalibrationBatches,
    CalibrationConfig,
    EvaluationSource,
    build_calibration,
)
from taskptq.engine.datasets import leaf_datasets
from taskptq.engine.pipeline import Recipe, quantize_model, restore_model
from taskptq.export.checkpoint import (
    QuantizedCheckpointError,
    is_quantized,
)
from taskptq.registry import HOOKS

__all__ = ['PTQHook', 'remove_ema_hooks', 'unwrap']


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside DDP and test-time-augmentation wrappers."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def remove_ema_hooks(runner: Runner) -> None:
    """Take EMAHooks out of a runner that evaluates.

    They would copy the float model and later exchange its parameters with
    those of the quantized one. ``state_dict`` of the checkpoints that they
    write is the average already.

    Args:
        runner: Runner that is calling ``before_run`` of its hooks.
    """
    found = [hook for hook in runner.hooks if isinstance(hook, EMAHook)]
    if not found:
        return
    names = sorted({type(hook).__name__ for hook in found})
    runner.logger.info(
        f'PTQHook took {", ".join(names)} out of this run: the checkpoint\'s '
        'state_dict already holds the averaged weights.')
    # The runner is walking along this very list: removing a hook that is
    # still ahead is safe, earlier ones only go from a new list.
    position = next(
        (i for i, hook in enumerate(runner.hooks)
         if isinstance(hook, PTQHook)), 0)
    runner.hooks[position:] = [
        hook for hook in runner.hooks[position:] if hook not in found
    ]
    if any(hook in found for hook in runner.hooks):
        runner._hooks = [hook for hook in runner.hooks if hook not in found]


@HOOKS.register_module()
class PTQHook(Hook):
    """Quantizes the model of ``Runner.test()`` and ``Runner.val()``.

    With a float checkpoint the model is quantized before the evaluation, and
    the result saved. With a quantized file the model is rebuilt from the
    file's own recipe, and only evaluated. Inside training it does nothing.

    Args:
        qconfig: Recipe of the quantizers; needed for float checkpoints.
        calibration: See ``CalibrationConfig``.
        reconstruction: See ``ReconstructionConfig``; None leaves it out.
        rewrites: Configs of ModelRewrites that run first.
        loss: Config of a ReconLoss; None is ``reconstruction.loss``.
        seed: Seed of the choice of images and of the reconstruction.
        out: Quantized file to write; None is ``quantized.pth`` in the
            work_dir, relative paths are relative to it.
        resume: Go on with a reconstruction that was interrupted.
    """

    # Ahead of EMAHook (NORMAL) and of everything that looks at the model.
    priority = 'VERY_HIGH'

    def __init__(self,
                 qconfig: Mapping[str, Any] | None = None,
                 *,
                 calibration: Mapping[str, Any] | None = None,
                 reconstruction: Mapping[str, Any] | None = None,
                 rewrites: Sequence[Mapping[str, Any]] | None = None,
                 loss: Mapping[str, Any] | None = None,
                 seed: int = 0,
                 out: str | None = None,
                 resume: bool = True) -> None:
        self.calibration = CalibrationConfig.from_dict(calibration, seed=seed)
        self.recipe = None
        if qconfig is not None:
            self.recipe = Recipe.from_config(
                qconfig,
                reconstruction=reconstruction,
                loss=loss,
                rewrites=rewrites,
                calibration=self.calibration.recipe(),
                seed=seed)
        self.out = out
        self.resume = resume
        self.report: dict[str, Any] | None = None
        self._batches: CalibrationBatches | None = None
        self._restored = False
        self._trained = False
        self._warned = False

    def before_run(self, runner: Runner) -> None:
        """Take EMAHooks out, unless this is a training run."""
        if not self._in_training(runner):
            remove_ema_hooks(runner)

    def after_train(self, runner: Runner) -> None:
        """Remember that what follows is no training any more."""
        self._trained = True

    def after_load_checkpoint(self, runner: Runner,
                              checkpoint: dict[str, Any]) -> None:
        """Rebuild the model if the checkpoint is a quantized file.

        Args:
            runner: The runner.
            checkpoint: What was read; its ``state_dict`` is replaced by one
                that fits the rebuilt model.

        Raises:
            QuantizedCheckpointError: If the file cannot be used here.
        """
        if not is_quantized(checkpoint):
            return
        if self._in_training(runner):
            raise QuantizedCheckpointError(
                'a quantized file cannot be trained from: load the float '
                'checkpoint instead')
        model = unwrap(runner.model)
        recipe = restore_model(checkpoint, model)
        # The runner loads this into the model once more; clones, because a
        # load must not copy a tensor onto itself.
        checkpoint['state_dict'] = {
            name: tensor.clone()
            for name, tensor in model.state_dict().items()
        }
        self._restored = True
        runner.logger.info(
            'Rebuilt the quantized model from the file; it is evaluated as it '
            'is, without calibration.')
        self._compare(runner, recipe)

    def before_test(self, runner: Runner) -> None:
        """Quantize before ``Runner.test()`` evaluates."""
        self._prepare_evaluation(runner, runner.test_loop)

    def before_val(self, runner: Runner) -> None:
        """Quantize before ``Runner.val()`` evaluates."""
        if self._in_training(runner):
            if not self._warned:
                runner.logger.warning(
                    'PTQHook does nothing inside training: this validation '
                    'is of the float model.')
            self._warned = True
            return
        self._prepare_evaluation(runner, runner.val_loop)

    def _in_training(self, runner: Runner) -> bool:
        """Whether ``Runner.train()`` is running (it builds its loop first)."""
        return isinstance(runner._train_loop, BaseLoop) and not self._trained

    def _prepare_evaluation(self, runner: Runner, loop: BaseLoop) -> None:
        """Quantize the runner's model, unless that was done before."""
        if self._restored:
            return
        source = EvaluationSource.from_loader(
            loop.dataloader, plain_pipeline=plain_pipeline(runner))
        if self._batches is not None:
            if not self.calibration.allow_overlap:
                self._batches.check_overlap(source.dataset)
            runner.logger.info('The model is quantized already.')
            return
        if self.recipe is None:
            raise ValueError(
                'PTQHook needs qconfig to quantize a float checkpoint: add '
                'one to the hook, or test a quantized file')
        if not runner._has_loaded:
            runner.logger.warning(
                'PTQHook quantizes a model into which no checkpoint was '
                'loaded: set load_from unless its weights are meant.')
        self._batches = build_calibration(
            self.calibration, source=source, default=train_dataset(runner))
        meta = {'dataset_meta': getattr(source.dataset, 'metainfo', {})}
        out = None if self.out is None else Path(runner.work_dir) / self.out
        self.report = quantize_model(
            unwrap(runner.model),
            self._batches,
            recipe=self.recipe,
            work_dir=runner.work_dir,
            out=out,
            resume=self.resume,
            meta=meta)

    def _compare(self, runner: Runner, recipe: Mapping[str, Any]) -> None:
        """Say so if the config asks for another recipe than the file's."""
        if self.recipe is None:
            return
        asked = self.recipe.to_dict()
        keys = [
            key for key in ('qconfig', 'reconstruction', 'loss', 'rewrites')
            if asked[key] != recipe.get(key)
        ]
        if keys:
            runner.logger.warning(
                f'The quantized file was made with other settings of '
                f'{" and ".join(keys)} than the config has: '
                "the file's recipe counts.")


def plain_pipeline(runner: Runner) -> Sequence[Any] | None:
    """Return the validation transforms of a runner's config, if any."""
    loader = runner.cfg.get('val_dataloader')
    if not isinstance(loader, Mapping):
        return None
    leaf = leaf_datasets(loader['dataset'])[0]
    return leaf.get('pipeline') if isinstance(leaf, Mapping) else None


def train_dataset(runner: Runner) -> Any:
    """Return the training dataset or its config, None if there is none."""
    loader = runner._train_dataloader
    if loader is None:
        return None
    if isinstance(loader, Mapping):
        return loader['dataset']
    return loader.dataset
