"""Hook that quantizes a model in mmengine's test and val runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.hooks import EMAHook, Hook
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import BaseLoop, Runner
from torch import nn

from taskptq.core.progress import listening
from taskptq.core.rules import SEED, Flag, Text
from taskptq.engine.calibration_config import CalibrationConfig
from taskptq.engine.calibration_data import (
    CalibrationBatches,
    EvaluationSource,
    build_calibration,
)
from taskptq.engine.checkpoint_file import TRAINING_KEY
from taskptq.engine.checkpoint_guard import (
    drop_config_text,
    guard_runner,
    guarded_path,
    refuse_resumed_misfit,
)
from taskptq.engine.datasets import loader_dataset, loader_pipeline
from taskptq.engine.evaluation import Evaluation, loss_recorder
from taskptq.engine.file_meta import file_meta, recipe_label
from taskptq.engine.fit import refuse_misfit
from taskptq.engine.onnx_hook import claim_onnx
from taskptq.engine.pipeline import quantize_model
from taskptq.engine.recipe import Recipe
from taskptq.engine.recipe_source import with_recipe
from taskptq.engine.refusals import (
    refuse_replaced_input,
    refuse_unwritable_file,
    refuse_unwritable_folder,
)
from taskptq.engine.restore import restore_model
from taskptq.export.checkpoint import (
    QuantizedCheckpointError,
    is_quantized,
)
from taskptq.registry import HOOKS

__all__ = ['PTQHook', 'remove_ema_hooks', 'unwrap']

OUT = Text(path=True, optional=True)


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside DDP and test-time-augmentation wrappers."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def remove_ema_hooks(runner: Runner) -> None:
    """Remove EMAHooks from a runner that evaluates.

    They would copy the float model and later swap its parameters with those
    of the quantized one. ``state_dict`` in their checkpoints already holds
    the average.

    Args:
        runner: Runner that is calling ``before_run`` of its hooks.
    """
    found = [hook for hook in runner.hooks if isinstance(hook, EMAHook)]
    if not found:
        return
    names = sorted({type(hook).__name__ for hook in found})
    runner.logger.info(
        f"PTQHook took {', '.join(names)} out of this run: the checkpoint's "
        'state_dict already holds the averaged weights.'
    )
    # The runner is iterating over this list: a hook that is still ahead can
    # be removed in place, earlier ones only from a new list.
    position = next(
        (
            i
            for i, hook in enumerate(runner.hooks)
            if isinstance(hook, PTQHook)
        ),
        0,
    )
    runner.hooks[position:] = [
        hook for hook in runner.hooks[position:] if hook not in found
    ]
    if any(hook in found for hook in runner.hooks):
        runner._hooks = [hook for hook in runner.hooks if hook not in found]


@HOOKS.register_module()
class PTQHook(Hook):
    """Quantize the model in ``Runner.test()`` and ``Runner.val()``.

    With a float checkpoint, the model is quantized before the evaluation and
    saved. With a quantized file, the model is rebuilt from the file's own
    recipe and only evaluated. During training the hook does nothing.

    Args:
        qconfig: The quantizers; float checkpoints need this or ``recipe``.
        recipe: Name such as ``w4a4_qdrop``, dict of its parts, config file
            that sets them, or a list of these, merged in order. Parts given
            here (``qconfig``, ``reconstruction``, ``rewrites``, ``loss``,
            ``mixed_precision``) replace those of the recipe.
        calibration: See ``CalibrationConfig``.
        reconstruction: See ``ReconstructionConfig``; None skips it.
        rewrites: Configs of ModelRewrites that run first.
        loss: Config of a ReconLoss; None is ``reconstruction.loss``.
        mixed_precision: See ``MixedPrecisionConfig``; None leaves it out.
        seed: Seed for choosing images and of the reconstruction.
        out: Quantized file to write, relative to the work_dir; None is
            ``quantized.pth``.
        resume: Continue an interrupted reconstruction.
        report: Write a page on the quantized file after the evaluation,
            ``report.html`` beside it.
        trust_checkpoint: Unpickle checkpoints that hold more than plain
            data, which can run code from the file: only for sources you
            trust.
    """

    # Before EMAHook (NORMAL) and every hook that looks at the model.
    priority = 'VERY_HIGH'

    def __init__(
        self,
        qconfig: Mapping[str, Any] | None = None,
        *,
        recipe: str | Mapping[str, Any] | Sequence[Any] | None = None,
        calibration: Mapping[str, Any] | None = None,
        reconstruction: Mapping[str, Any] | None = None,
        rewrites: Sequence[Mapping[str, Any]] | None = None,
        loss: Mapping[str, Any] | None = None,
        mixed_precision: Mapping[str, Any] | None = None,
        seed: int = 0,
        out: str | None = None,
        resume: bool = True,
        report: bool = False,
        trust_checkpoint: bool = False,
    ) -> None:
        seed = SEED.read(seed, name='PTQHook.seed')
        self.calibration = CalibrationConfig.from_dict(calibration, seed=seed)
        given = {
            'qconfig': qconfig,
            'reconstruction': reconstruction,
            'loss': loss,
            'rewrites': rewrites,
            'mixed_precision': mixed_precision,
        }
        parts = with_recipe(recipe, owner='PTQHook', **given)
        self.label = recipe_label(recipe, **given)
        self.recipe = None
        if parts['qconfig'] is not None:
            self.recipe = Recipe.from_config(
                parts.pop('qconfig'),
                **parts,
                calibration=self.calibration.recipe(),
                seed=seed,
            )
        self.out = OUT.read(out, name='PTQHook.out')
        self.resume = Flag().read(resume, name='PTQHook.resume')
        self.trust_checkpoint = Flag().read(
            trust_checkpoint, name='PTQHook.trust_checkpoint'
        )
        self.report: dict[str, Any] | None = None
        page = Flag().read(report, name='PTQHook.report')
        self.evaluation = Evaluation(page=page)
        self._batches: CalibrationBatches | None = None
        self._restored = False
        self._trained = False
        self._warned = False

    def before_run(self, runner: Runner) -> None:
        """Guard the runner's next read and check the outputs.

        EMAHooks are removed unless the runner trains.

        Raises:
            FileNotFoundError: If the checkpoint does not exist.
            ValueError: If there is another PTQHook, or an output cannot be
                written; see also ``guard_runner``.
        """
        if sum(isinstance(hook, PTQHook) for hook in runner.hooks) > 1:
            raise ValueError(
                'custom_hooks has PTQHook more than once: keep one; a list '
                'as its recipe merges several'
            )
        training = self._in_training(runner)
        if not training and claim_onnx(runner, unwrap(runner.model)):
            self._restored = True
            remove_ema_hooks(runner)
            return
        guard_runner(
            runner, training=training, trust_checkpoint=self.trust_checkpoint
        )
        if training:
            return
        remove_ema_hooks(runner)
        if self.recipe is not None:
            refuse_unwritable_folder(runner.work_dir, name='work_dir')
            out = 'quantized.pth' if self.out is None else self.out
            refuse_unwritable_file(
                Path(runner.work_dir) / out, name='PTQHook.out'
            )

    def after_train(self, runner: Runner) -> None:
        """Mark training as finished."""
        self._trained = True

    def after_load_checkpoint(
        self, runner: Runner, checkpoint: dict[str, Any]
    ) -> None:
        """Rebuild the model of a quantized file; check a float file's fit.

        Args:
            runner: The runner.
            checkpoint: Loaded checkpoint; its ``state_dict`` is replaced by
                one that fits the rebuilt model.

        Raises:
            QuantizedCheckpointError: If the file cannot be used here.
            ValueError: If float weights do not fit the model.
        """
        training = self._in_training(runner)
        if training and not self.trust_checkpoint:
            drop_config_text(checkpoint)
        if not is_quantized(checkpoint):
            if training:
                refuse_resumed_misfit(runner, checkpoint)
            else:
                self._check_float(runner, checkpoint)
            return
        if training:
            raise QuantizedCheckpointError(
                'training cannot start from a quantized file: load the float '
                'checkpoint instead'
            )
        model = unwrap(runner.model)
        recipe = restore_model(checkpoint, model)
        # The runner loads this into the model again. Cloned, because a load
        # must not copy a tensor onto itself.
        checkpoint['state_dict'] = {
            name: tensor.clone() for name, tensor in model.state_dict().items()
        }
        self._restored = True
        self.evaluation.set_file(
            guarded_path(runner._load_from),
            checkpoint['digest'],
            float_path=None,
        )
        runner.logger.info(
            'Rebuilt the quantized model from the file; it is evaluated as it '
            'is, without calibration.'
        )
        self._compare(runner, recipe)

    def _check_float(
        self, runner: Runner, checkpoint: Mapping[str, Any]
    ) -> None:
        """Refuse float weights of another model."""
        if TRAINING_KEY in checkpoint:
            # QATHook, which runs before or after this hook, rebuilds it.
            if not any(
                hasattr(hook, 'checkpoint_key') for hook in runner.hooks
            ):
                raise ValueError(
                    'the file is a checkpoint of a quantization-aware '
                    'training: test it with a config that has QATHook in its '
                    'custom_hooks'
                )
            return
        refuse_misfit(
            unwrap(runner.model),
            checkpoint,
            logger=runner.logger,
            path=guarded_path(runner._load_from),
        )

    def before_test(self, runner: Runner) -> None:
        """Quantize before ``Runner.test()`` evaluates."""
        self._prepare_evaluation(runner, runner.test_loop)

    def before_val(self, runner: Runner) -> None:
        """Quantize before ``Runner.val()`` evaluates."""
        if self._in_training(runner):
            if not self._warned:
                runner.logger.warning(
                    'PTQHook does nothing inside training: this validation '
                    'is of the float model.'
                )
            self._warned = True
            return
        self._prepare_evaluation(runner, runner.val_loop)

    def before_test_epoch(self, runner: Runner) -> None:
        """Show how far the evaluation is."""
        self.evaluation.start(runner.test_loop)

    def after_test_iter(self, runner: Runner, *args: Any, **kw: Any) -> None:
        """Count a batch."""
        self.evaluation.advance()

    def after_test_epoch(
        self, runner: Runner, metrics: dict[str, float] | None = None
    ) -> None:
        """Record the metrics beside the file, and write the page."""
        self.evaluation.finish(runner, metrics or {})

    def after_run(self, runner: Runner) -> None:
        """Say at the end what there is now, and what comes next."""
        self.evaluation.log_summary(runner)

    def after_val_epoch(
        self, runner: Runner, metrics: dict[str, float] | None = None
    ) -> None:
        """Record the metrics beside the file, unless in training."""
        if not self._in_training(runner):
            self.evaluation.finish(runner, metrics or {})

    def _in_training(self, runner: Runner) -> bool:
        # Runner.train() builds its loop first.
        return isinstance(runner._train_loop, BaseLoop) and not self._trained

    def _prepare_evaluation(self, runner: Runner, loop: BaseLoop) -> None:
        """Quantize the runner's model, unless it is already quantized."""
        if self._restored:
            return
        source = EvaluationSource.from_loader(
            loop.dataloader,
            plain_pipeline=loader_pipeline(runner.cfg.get('val_dataloader')),
        )
        if self._batches is not None:
            if not self.calibration.allow_overlap:
                self._batches.check_overlap(source.dataset)
            runner.logger.info('The model is quantized already.')
            return
        if self.recipe is None:
            raise ValueError(
                'PTQHook needs qconfig or recipe to quantize a float '
                "checkpoint: add one to the hook, such as recipe='w8a8', or "
                'test a quantized file'
            )
        written = Path(runner.work_dir) / (self.out or 'quantized.pth')
        refuse_replaced_input(
            written,
            name=f'PTQHook.out={written}',
            inputs=[guarded_path(runner._load_from)],
        )
        if not runner._has_loaded:
            runner.logger.warning(
                'PTQHook quantizes a model into which no checkpoint was '
                'loaded: set load_from unless its weights are meant.'
            )
        self._batches = build_calibration(
            self.calibration,
            source=source,
            default=loader_dataset(runner._train_dataloader),
        )
        meta = file_meta(
            dataset_meta=getattr(source.dataset, 'metainfo', {}),
            recipe=self.label,
            config=runner.cfg.filename,
        )
        out = None if self.out is None else Path(runner.work_dir) / self.out
        with listening(loss_recorder(runner)):
            self.report = quantize_model(
                unwrap(runner.model),
                self._batches,
                recipe=self.recipe,
                work_dir=runner.work_dir,
                out=out,
                resume=self.resume,
                meta=meta,
            )
        if 'checkpoint' in self.report:
            self.evaluation.set_file(
                Path(self.report['checkpoint']),
                self.report['digest'],
                float_path=guarded_path(runner._load_from),
            )

    def _compare(self, runner: Runner, recipe: Mapping[str, Any]) -> None:
        """Warn if the config's recipe differs from the file's."""
        if self.recipe is None:
            return
        keys = self.recipe.differences(recipe)
        if keys:
            runner.logger.warning(
                f'The quantized file was made with other settings of '
                f'{" and ".join(keys)} than the config has: '
                "the file's recipe counts."
            )
