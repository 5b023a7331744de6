"""Hook that makes an mmengine training quantization-aware."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner

from taskptq.engine.builder import build_qconfig, to_plain
from taskptq.engine.checkpoint_file import TRAINING_KEY
from taskptq.engine.checkpoint_guard import (
    drop_config_text,
    guard_runner,
    guarded_path,
)
from taskptq.engine.contexts import seeded, shared_log
from taskptq.engine.fit import refuse_misfit
from taskptq.engine.pipeline import refuse_quantized
from taskptq.engine.ptq_hook import unwrap
from taskptq.engine.refusals import (
    refuse_unwritable_file,
    refuse_unwritable_folder,
)
from taskptq.export.checkpoint import is_quantized
from taskptq.prepare import Decisions, QConfig
from taskptq.qat.calibration import RunCalibration
from taskptq.qat.checkpoint import (
    add_entry,
    check_continuation,
    entry_decisions,
    find_entry,
    recorded_stage,
    stage_of,
)
from taskptq.qat.checks import epochs_of, refuse_company
from taskptq.qat.distillation import Distillation
from taskptq.qat.finish import write_trained
from taskptq.qat.learning import Learning
from taskptq.qat.model import load_training_state
from taskptq.qat.settings import TrainingSettings
from taskptq.qat.stages import Stages
from taskptq.qat.structure import TrainedStructure
from taskptq.qat.teacher import RunTeacher
from taskptq.registry import HOOKS

__all__ = ['QATHook']


@HOOKS.register_module()
class QATHook(Hook):
    """Train a model with its quantizers on, in ``Runner.train()``.

    After the float weights are loaded, the model is prepared and calibrated,
    and its optimizer and schedulers are rebuilt. Validation during training
    uses the quantized model. At the end the weights are rounded to their
    learned grids and written to ``quantized.pth``, which ``Runner.test()``
    reads with PTQHook.

    Training checkpoints hold the recipe, from which a resume or a test
    rebuilds the model. A test also freezes it and writes its quantized file.

    Args:
        qconfig: The quantizers; scales of type LSQQuantizer are trained.
            Training needs this or ``recipe``.
        recipe: Name such as ``w4a4-8_drd-qat``, dict of its parts, config
            file that sets them, or a list of these, merged in order.
            ``qconfig`` and ``distillation`` given here replace its own.
        calibration: Calibration of the initial ranges, see
            ``CalibrationConfig``.
        distillation: See ``DistillationConfig``; None trains only on the
            model's own loss.
        stage: 1 quantizes only the backbone, 2 the whole model; 2 may start
            from a checkpoint of 1.
        stages: Stages of one training instead: dicts with ``part`` (names or
            patterns of what is quantized; None is all), ``recipe`` or
            ``qconfig`` (of all but the last one, which has the hook's) and
            ``epochs`` (the last one takes the rest).
        lr_mult: Learning rate multipliers of scale, offset, gamma and beta,
            or one for all; see ``taskptq.qat.optimizer.separate``.
        seed: Seed for choosing the calibration images.
        out: Quantized file to write, relative to the work_dir; None is
            ``quantized.pth``.
        trust_checkpoint: Unpickle checkpoints that hold more than plain
            data, which can run code from the file: only for sources you
            trust.

    Raises:
        ValueError: If a setting is invalid.
    """

    # Before every hook that looks at the model or the optimizer.
    priority = 'VERY_HIGH'
    checkpoint_key = TRAINING_KEY

    def __init__(
        self,
        qconfig: Mapping[str, Any] | None = None,
        *,
        recipe: str | Mapping[str, Any] | Sequence[Any] | None = None,
        calibration: Mapping[str, Any] | None = None,
        distillation: Mapping[str, Any] | None = None,
        stage: int = 2,
        stages: Sequence[Mapping[str, Any]] | None = None,
        lr_mult: float | Mapping[str, float] | None = None,
        seed: int = 0,
        out: str | None = None,
        trust_checkpoint: bool = False,
    ) -> None:
        self.settings = TrainingSettings.read(
            qconfig=qconfig,
            recipe=recipe,
            calibration=calibration,
            distillation=distillation,
            stage=stage,
            stages=stages,
            lr_mult=lr_mult,
            seed=seed,
            out=out,
            trust_checkpoint=trust_checkpoint,
        )
        self.recipe = self.settings.recipe()
        self.report: dict[str, Any] = {}
        self._learning = Learning(self.settings.lr_mult)
        self._calibration = RunCalibration(
            self.settings.calibration, seed=self.settings.seed
        )
        self.distillation = self.settings.distillation
        self._teacher = RunTeacher(self.distillation)
        self._distillation: Distillation | None = None
        self._structure = TrainedStructure(self.settings.stages, work_dir='.')
        self._resumed = self._trained = self._frozen = False
        self._start = time.perf_counter()

    @property
    def qconfig(self) -> QConfig | None:
        """Quantizers of the last stage."""
        return self.settings.qconfig

    def before_run(self, runner: Runner) -> None:
        """Guard the runner's next read and check that training can work.

        Raises:
            FileNotFoundError: If the checkpoint does not exist.
            ValueError: If an output cannot be written; see also
                ``guard_runner`` and ``refuse_company``.
        """
        training = self._in_training(runner)
        guard_runner(
            runner,
            training=training,
            trust_checkpoint=self.settings.trust_checkpoint,
        )
        if not training:
            return
        if self.qconfig is None:
            raise ValueError(
                'QATHook needs qconfig or recipe to train: add one to the '
                "hook, such as recipe='w4a4_lsq-qat'"
            )
        refuse_company(runner)
        self.settings.stages.check_length(epochs_of(runner))
        refuse_unwritable_folder(runner.work_dir, name='work_dir')
        refuse_unwritable_file(self._out_path(runner), name='QATHook.out')

    def _out_path(self, runner: Runner) -> Path:
        out = self.settings.out or 'quantized.pth'
        return Path(runner.work_dir) / out

    def after_load_checkpoint(
        self, runner: Runner, checkpoint: dict[str, Any]
    ) -> None:
        """Rebuild the model if the checkpoint was written by this hook.

        Args:
            runner: The runner.
            checkpoint: Loaded checkpoint; its ``state_dict`` is replaced by
                one that fits the rebuilt model.

        Raises:
            ValueError: If the checkpoint cannot be used here.
        """
        training = self._in_training(runner)
        if training and not self.settings.trust_checkpoint:
            drop_config_text(checkpoint)
        if is_quantized(checkpoint) and not training:
            return
        entry = find_entry(
            checkpoint, training=training, resume=bool(runner._resume)
        )
        if entry is None:
            refuse_misfit(
                unwrap(runner.model),
                checkpoint,
                logger=runner.logger,
                path=guarded_path(runner._load_from),
            )
            return
        self._rebuild(runner, entry, training=training)
        # The runner loads this into the model again. Cloned, because a load
        # must not copy a tensor onto itself.
        state = unwrap(runner.model).state_dict()
        checkpoint['state_dict'] = {k: v.clone() for k, v in state.items()}
        if self._resumed:
            # Before the runner restores the optimizer's state.
            self._learning.start(runner)

    def before_train(self, runner: Runner) -> None:
        """Make the training quantization-aware before its first step.

        Raises:
            ValueError: See ``choose_batches`` and ``Distillation``.
        """
        if not self._structure.prepared:
            self._prepare_float(runner)
        if not self._resumed:
            self._calibrate(runner)
            self._learning.start(runner)
        if self.settings.distillation is not None:
            assert self._teacher.model is not None
            self._distillation = Distillation(
                runner.model,
                self._teacher.model,
                config=self.settings.distillation,
            )
            if self._distillation.wants_batches:
                self._distillation.prepare(self._calibration.choose(runner))
            self._distillation.attach()

    def before_train_epoch(self, runner: Runner) -> None:
        """Enter the next stage if it begins with this epoch."""
        at = self.settings.stages.at(runner.epoch)
        if at == self._structure.at:
            return
        runner.logger.info(
            f'Quantization-aware training: '
            f'{self.settings.stages.title(at)} begins.'
        )
        model = unwrap(runner.model)
        self._structure.enter(model, at)
        self.recipe = self.settings.recipe(at=at)
        self._calibrate(runner)
        self._learning.start(runner, goes_on=True)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Undo the effects of ``model.train()`` on quantizers and norms.

        Hosts freeze stages there, including the quantizers inside.
        """
        self._learning.hold()

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep the grids valid after a step."""
        self._learning.after_step(unwrap(runner.model))

    def before_save_checkpoint(
        self, runner: Runner, checkpoint: dict[str, Any]
    ) -> None:
        """Add the recipe to a training checkpoint."""
        if not self._structure.prepared or self._frozen:
            return
        add_entry(
            checkpoint,
            recipe=self.recipe,
            report=self.report,
            structure=self._structure.record,
            teacher=self._teacher.digest,
        )

    def after_train(self, runner: Runner) -> None:
        """Freeze the model and write its quantized file."""
        if self._distillation is not None:
            self._distillation.detach()
            self._distillation = None
        self._teacher.model = None
        self._finish(runner)
        self._trained = True

    def before_test(self, runner: Runner) -> None:
        """Freeze a model rebuilt from a training checkpoint."""
        if self._structure.prepared and not self._frozen:
            self._finish(runner)

    def before_val(self, runner: Runner) -> None:
        """Freeze as before a test; do nothing during training."""
        if not self._in_training(runner):
            self.before_test(runner)

    def _in_training(self, runner: Runner) -> bool:
        # Runner.train() builds its loop first.
        return isinstance(runner._train_loop, BaseLoop) and not self._trained

    def _prepare_float(self, runner: Runner) -> None:
        """Copy the float model for the teacher, then prepare it."""
        if not runner._has_loaded:
            runner.logger.warning(
                'QATHook trains without a loaded checkpoint: set load_from '
                'unless this is intended.'
            )
        model = runner.model
        refuse_quantized(model)
        # Stage 1 keeps the float weights, since stage 2 may distill from them.
        self._teacher.start(
            model,
            work_dir=runner.work_dir,
            keep=self.settings.stages.number == 1,
        )
        assert self.qconfig is not None
        batches = self._calibration.choose(runner)
        self._swap(runner, self.qconfig, batch=batches[0])

    def _rebuild(
        self, runner: Runner, entry: Mapping[str, Any], *, training: bool
    ) -> None:
        """Prepare the float model as recorded and load the checkpoint."""
        model = unwrap(runner.model)
        refuse_quantized(model)
        qconfig, stages, at = self.qconfig, self.settings.stages, 0
        if training:
            self._resumed = bool(runner._resume)
            check_continuation(
                entry['recipe'], self.recipe, resume=self._resumed
            )
            self._teacher.recall(
                runner.model,
                digest=entry['teacher'],
                work_dir=runner.work_dir,
                source=guarded_path(runner._load_from),
            )
            at = stage_of(entry['recipe']) if self._resumed else 0
            self.recipe = self.settings.recipe(at=at)
        else:
            self.recipe = to_plain(entry['recipe'])
            qconfig = build_qconfig(self.recipe['qconfig'], from_file=True)
            stages = recorded_stage(self.recipe['training'])
        assert qconfig is not None
        decisions = entry_decisions(entry, model)
        self._swap(runner, qconfig, stages=stages, at=at, decisions=decisions)
        load_training_state(model, entry['weights'])
        if not training or self._resumed:
            self.report = to_plain(entry['report'])
            self._structure.recall_products(entry.get('structure') or {})
            self.report['swap'] = self._structure.summary()

    def _swap(
        self,
        runner: Runner,
        qconfig: QConfig,
        *,
        stages: Stages | None = None,
        at: int = 0,
        batch: Any = None,
        decisions: Decisions | None = None,
    ) -> None:
        """Fold and swap, and report what happened to each layer."""
        self._structure = TrainedStructure(
            stages or self.settings.stages, work_dir=runner.work_dir
        )
        with seeded(self.settings.seed), shared_log():
            self._structure.prepare(
                unwrap(runner.model),
                qconfig,
                at=at,
                batch=batch,
                decisions=decisions,
            )
        self.report['swap'] = self._structure.summary()

    def _calibrate(self, runner: Runner) -> None:
        """Set the initial ranges."""
        report = self._calibration.run(runner, self._structure.report)
        self._structure.keep(self._structure.report)
        self.report['swap'] = self._structure.summary()
        self.report['calibration'] = to_plain(report.to_dict())

    def _finish(self, runner: Runner) -> None:
        """Freeze, and write the quantized file."""
        self._frozen = True
        self.report |= {
            'recipe': self.recipe,
            'seconds': time.perf_counter() - self._start,
        }
        self.report = write_trained(
            runner,
            self.report,
            out=self._out_path(runner),
            structure=self._structure.record,
        )
