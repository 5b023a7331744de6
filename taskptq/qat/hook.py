"""Hook that makes an mmengine training quantization-aware."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import BaseLoop, Runner
from torch import nn

from taskptq.core.rules import SEED, Choice, Flag, Text
from taskptq.engine.builder import build_qconfig, to_plain
from taskptq.engine.calibration_config import CalibrationConfig
from taskptq.engine.calibration_data import CalibrationBatches
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
from taskptq.engine.quantization_report import (
    structure_of,
    swap_summary,
    write_results,
    write_swap_report,
)
from taskptq.engine.recipe import Recipe
from taskptq.engine.recipe_source import with_recipe
from taskptq.engine.refusals import (
    refuse_unwritable_file,
    refuse_unwritable_folder,
)
from taskptq.export.checkpoint import is_quantized
from taskptq.prepare import Decisions, QConfig, SwapReport
from taskptq.prepare.products import ProductReport
from taskptq.qat.calibration import calibrate_training, choose_batches
from taskptq.qat.checkpoint import (
    add_entry,
    check_continuation,
    entry_decisions,
    find_entry,
    training_recipe,
)
from taskptq.qat.checks import (
    dataset_meta,
    refuse_company,
    refuse_sparsity,
)
from taskptq.qat.distillation import Distillation, DistillationConfig
from taskptq.qat.model import (
    STAGES,
    Learned,
    frozen_norms,
    keep_valid,
    load_training_state,
    prepare_training,
    start_learning,
)
from taskptq.qat.optimizer import read_lr_mult, rebuild_optimization
from taskptq.qat.teacher import RunTeacher
from taskptq.reconstruction.freeze import freeze
from taskptq.registry import HOOKS
from taskptq.version import __version__

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
        lr_mult: float | Mapping[str, float] | None = None,
        seed: int = 0,
        out: str | None = None,
        trust_checkpoint: bool = False,
    ) -> None:
        stage = Choice(choices=tuple(STAGES)).read(stage, name='stage')
        seed = SEED.read(seed, name='QATHook.seed')
        self.calibration = CalibrationConfig.from_dict(calibration, seed=seed)
        parts = with_recipe(
            recipe, owner='QATHook', qconfig=qconfig, distillation=distillation
        )
        qconfig, distillation = parts['qconfig'], parts['distillation']
        self.distillation = None
        if distillation is not None:
            self.distillation = DistillationConfig.from_dict(
                to_plain(distillation)
            )
        self.stage = stage
        self.lr_mult = read_lr_mult(lr_mult)
        self.seed = seed
        self.out = Text(path=True, optional=True).read(out, name='QATHook.out')
        self.trust_checkpoint = Flag().read(
            trust_checkpoint, name='QATHook.trust_checkpoint'
        )
        self.qconfig: QConfig | None = None
        self.recipe: dict[str, Any] = {}
        if qconfig is not None:
            self.qconfig = build_qconfig(qconfig)
            refuse_sparsity(self.qconfig)
            self.recipe = training_recipe(
                Recipe.from_config(
                    self.qconfig,
                    calibration=self.calibration.recipe(),
                    seed=seed,
                ),
                stage=stage,
                distillation=self.distillation,
                lr_mult=self.lr_mult,
            )
        self.report: dict[str, Any] = {}
        self._learned: list[Learned] = []
        self._norms: list[nn.Module] = []
        self._teacher = RunTeacher(self.distillation)
        self._distillation: Distillation | None = None
        self._swapped = SwapReport()
        self._structure: dict[str, Any] = {}
        self._batches: CalibrationBatches | None = None
        self._prepared = False
        self._resumed = False
        self._trained = False
        self._frozen = False
        self._start = time.perf_counter()

    def before_run(self, runner: Runner) -> None:
        """Guard the runner's next read and check that training can work.

        Raises:
            FileNotFoundError: If the checkpoint does not exist.
            ValueError: If an output cannot be written; see also
                ``guard_runner`` and ``refuse_company``.
        """
        training = self._in_training(runner)
        guard_runner(
            runner, training=training, trust_checkpoint=self.trust_checkpoint
        )
        if not training:
            return
        if self.qconfig is None:
            raise ValueError(
                'QATHook needs qconfig or recipe to train: add one to the '
                "hook, such as recipe='w4a4_lsq-qat'"
            )
        refuse_company(runner)
        refuse_unwritable_folder(runner.work_dir, name='work_dir')
        refuse_unwritable_file(self._out_path(runner), name='QATHook.out')

    def _out_path(self, runner: Runner) -> Path:
        out = 'quantized.pth' if self.out is None else self.out
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
        if training and not self.trust_checkpoint:
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
            self._make_trainable(runner)

    def before_train(self, runner: Runner) -> None:
        """Make the training quantization-aware before its first step.

        Raises:
            ValueError: See ``choose_batches`` and ``Distillation``.
        """
        if not self._prepared:
            self._prepare_float(runner)
        if not self._resumed:
            self._calibrate(runner)
            self._make_trainable(runner)
        if self.distillation is not None:
            assert self._teacher.model is not None
            self._distillation = Distillation(
                runner.model, self._teacher.model, config=self.distillation
            )
            self._distillation.attach()

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Undo the effects of ``model.train()`` on quantizers and norms.

        Hosts freeze stages there, including the quantizers inside.
        """
        for item in self._learned:
            item.parameter.requires_grad_(True)
        for norm in self._norms:
            norm.eval()

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: Mapping[str, Any] | None = None,
    ) -> None:
        """Keep the grids valid after a step."""
        keep_valid(self._learned)

    def before_save_checkpoint(
        self, runner: Runner, checkpoint: dict[str, Any]
    ) -> None:
        """Add the recipe to a training checkpoint."""
        if not self._prepared or self._frozen:
            return
        add_entry(
            checkpoint,
            recipe=self.recipe,
            report=self.report,
            structure=self._structure,
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
        if self._prepared and not self._frozen:
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
            model, work_dir=runner.work_dir, keep=self.stage == 1
        )
        assert self.qconfig is not None
        self._batches = choose_batches(
            runner, settings=self.calibration, seed=self.seed
        )
        self._swap(
            runner, self.qconfig, stage=self.stage, batch=self._batches[0]
        )

    def _rebuild(
        self, runner: Runner, entry: Mapping[str, Any], *, training: bool
    ) -> None:
        """Prepare the float model as recorded and load the checkpoint."""
        model = unwrap(runner.model)
        refuse_quantized(model)
        qconfig, stage = self.qconfig, self.stage
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
        else:
            self.recipe = to_plain(entry['recipe'])
            qconfig = build_qconfig(self.recipe['qconfig'], from_file=True)
            stage = self.recipe['training']['stage']
        assert qconfig is not None
        decisions = entry_decisions(entry, model)
        self._swap(runner, qconfig, stage=stage, decisions=decisions)
        load_training_state(model, entry['weights'])
        if not training or self._resumed:
            self.report = to_plain(entry['report'])
            self._recall_products(entry.get('structure') or {})

    def _recall_products(self, structure: Mapping[str, Any]) -> None:
        """Restore the products traced at the start of the training."""
        if 'products' in structure:
            products = ProductReport.from_dict(structure['products'])
            self._swapped.add_products(products)
            self._keep(self._swapped)

    def _swap(
        self,
        runner: Runner,
        qconfig: QConfig,
        *,
        stage: int,
        batch: Any = None,
        decisions: Decisions | None = None,
    ) -> None:
        """Fold and swap, and report what happened to each layer."""
        model = unwrap(runner.model)
        with seeded(self.seed), shared_log():
            report = prepare_training(
                model, qconfig, stage=stage, batch=batch, decisions=decisions
            )
            Path(runner.work_dir).mkdir(parents=True, exist_ok=True)
            write_swap_report(report, Path(runner.work_dir))
        self._keep(report)
        self._prepared = True

    def _keep(self, report: SwapReport) -> None:
        """Keep the structure for the files of this training."""
        self._swapped = report
        self._structure = structure_of(report)
        self.report['swap'] = swap_summary(report)

    def _calibrate(self, runner: Runner) -> None:
        """Set the initial ranges."""
        batches = self._batches or choose_batches(
            runner, settings=self.calibration, seed=self.seed
        )
        self._batches = None
        report = calibrate_training(
            runner,
            batches,
            settings=self.calibration,
            seed=self.seed,
            swapped=self._swapped,
        )
        self._keep(self._swapped)
        self.report['calibration'] = to_plain(report.to_dict())

    def _make_trainable(self, runner: Runner) -> None:
        """Turn the quantizers on and rebuild the optimization with them."""
        self._learned = start_learning(runner.model)
        self._norms = frozen_norms(runner.model)
        rebuild_optimization(runner, self._learned, lr_mult=self.lr_mult)
        runner.logger.info(
            f'Quantization-aware training: {len(self._learned)} quantizer '
            'parameters train along with the weights.'
        )

    def _finish(self, runner: Runner) -> None:
        """Freeze, and write the quantized file."""
        model = unwrap(runner.model)
        frozen = freeze(model)
        model.eval()
        self._frozen = True
        work_dir = Path(runner.work_dir)
        out = self._out_path(runner)
        out.parent.mkdir(parents=True, exist_ok=True)
        self.report |= {
            'taskptq': __version__,
            'recipe': self.recipe,
            'freeze': frozen.to_dict(),
            'seconds': time.perf_counter() - self._start,
        }
        self.report = write_results(
            model,
            self.report,
            work_dir=work_dir,
            out=out,
            meta={'dataset_meta': dataset_meta(runner)},
            structure=self._structure,
        )
