"""The hook that turns an mmengine training into a quantization-aware one."""

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
from taskptq.engine.calibration_data import (
    CalibrationBatches,
    CalibrationConfig,
    build_calibration,
)
from taskptq.engine.checkpoint_file import TRAINING_KEY
from taskptq.engine.checkpoint_guard import (
    drop_config_text,
    guard_runner,
    guarded_path,
)
from taskptq.engine.contexts import seeded, shared_log
from taskptq.engine.fit import refuse_misfit
from taskptq.engine.pipeline import (
    Recipe,
    refuse_quantized,
    report_what_ran,
    structure_of,
    swap_summary,
    write_results,
    write_swap_report,
)
from taskptq.engine.ptq_hook import train_dataset, unwrap
from taskptq.engine.recipe_source import with_recipe
from taskptq.engine.refusals import (
    refuse_unwritable_file,
    refuse_unwritable_folder,
)
from taskptq.engine.restore import read_decisions
from taskptq.export.checkpoint import is_quantized
from taskptq.prepare import Decisions, QConfig, SwapReport
from taskptq.prepare.products import ProductReport
from taskptq.qat.checks import (
    check_continuation,
    check_entry,
    dataset_meta,
    evaluation_source,
    refuse_company,
)
from taskptq.qat.distillation import Distillation, DistillationConfig
from taskptq.qat.model import (
    STAGES,
    Learned,
    calibrate_rest,
    frozen_norms,
    keep_valid,
    load_training_state,
    prepare_training,
    start_learning,
)
from taskptq.qat.optimizer import read_lr_mult, rebuild_optimization
from taskptq.qat.teacher import (
    find_teacher,
    make_teacher,
    other_teacher,
    save_teacher,
)
from taskptq.reconstruction.freeze import freeze
from taskptq.registry import HOOKS
from taskptq.version import __version__

__all__ = ['QATHook']

SCHEMA = 1
# Instead of weights that fit no float model: a runner without the hook stops.
STATE_DICT_NOTE = (
    'taskptq training checkpoint: test it, resume it or start the next stage '
    'from it with a config that has QATHook in its custom_hooks'
)


@HOOKS.register_module()
class QATHook(Hook):
    """Trains a model with its quantizers on, by ``Runner.train()``.

    Once the float weights are loaded, the model is prepared and calibrated,
    and the optimizer and its schedulers are built once more around it.
    Validations inside the training are of the quantized model. At the end
    the weights are rounded onto the grids that they have learned, and
    ``quantized.pth`` is written, which ``Runner.test()`` reads with PTQHook.

    Checkpoints of the training hold the recipe. Resumed from one, or tested
    with one, the model is rebuilt first; tested, it is frozen as well, and
    its quantized file written.

    Args:
        qconfig: The quantizers; scales train where their type is
            LSQQuantizer. This or ``recipe`` is needed for training.
        recipe: Name such as ``w4a4-8_drd-qat``, dict of its parts, config
            file that sets them, or a list of these, merged in order.
            ``qconfig`` and ``distillation`` given here replace its own.
        calibration: See ``CalibrationConfig``; it sets the first ranges.
        distillation: See ``DistillationConfig``; None trains on the model's
            own loss alone.
        stage: 1 quantizes the backbone alone, 2 the whole model; 2 may
            start from a checkpoint of 1.
        lr_mult: Learning rate multipliers of scale, offset, gamma and beta,
            or one for all; see ``taskptq.qat.optimizer.separate``.
        seed: Seed of the choice of calibration images.
        out: Quantized file to write; None is ``quantized.pth`` in the
            work_dir, relative paths are relative to it.
        trust_checkpoint: Unpickle a checkpoint that is not plain, which runs
            code that it names: for files whose source you trust.

    Raises:
        ValueError: If a setting is impossible.
    """

    # Ahead of everything that looks at the model or the optimizer.
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
            self.recipe = self._make_recipe(self.qconfig)
        self.report: dict[str, Any] = {}
        self._learned: list[Learned] = []
        self._norms: list[nn.Module] = []
        self._teacher: nn.Module | None = None
        self._teacher_digest: str | None = None
        self._distillation: Distillation | None = None
        self._swapped = SwapReport()
        self._structure: dict[str, Any] = {}
        self._batches: CalibrationBatches | None = None
        self._prepared = False
        self._resumed = False
        self._trained = False
        self._frozen = False
        self._start = time.perf_counter()

    def _make_recipe(self, qconfig: QConfig) -> dict[str, Any]:
        """Return what files record, plain; a PTQ recipe and one entry."""
        recipe = Recipe.from_config(
            qconfig, calibration=self.calibration.recipe(), seed=self.seed
        )
        distillation = None
        if self.distillation is not None:
            distillation = to_plain(self.distillation.to_dict())
        return {
            **recipe.to_dict(),
            'training': {
                'stage': self.stage,
                'distillation': distillation,
                'lr_mult': self.lr_mult,
            },
        }

    def before_run(self, runner: Runner) -> None:
        """Guard what the runner reads next; refuse what cannot work.

        Raises:
            FileNotFoundError: If there is no such checkpoint.
            ValueError: See ``guard_runner`` and ``refuse_company``; or if
                nothing can be written.
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
        """Rebuild the model if the checkpoint is of such a training.

        Args:
            runner: The runner.
            checkpoint: What was read; its ``state_dict`` is replaced by one
                that fits the rebuilt model.

        Raises:
            ValueError: If the checkpoint cannot be used here.
        """
        training = self._in_training(runner)
        if training and not self.trust_checkpoint:
            drop_config_text(checkpoint)
        if is_quantized(checkpoint):
            if training:
                raise ValueError(
                    'a quantized file cannot be trained from, since its '
                    'float weights are gone: load the float checkpoint '
                    'instead'
                )
            return
        if TRAINING_KEY not in checkpoint:
            if training and runner._resume:
                raise ValueError(
                    'QATHook resumes its own checkpoints only, and this one '
                    'is of another training: start from it with load_from '
                    'and without resume'
                )
            refuse_misfit(
                unwrap(runner.model),
                checkpoint,
                logger=runner.logger,
                path=guarded_path(runner._load_from),
            )
            return
        entry = checkpoint[TRAINING_KEY]
        check_entry(entry, schema=SCHEMA)
        self._rebuild(runner, entry, training=training)
        # The runner loads this into the model once more; clones, because a
        # load must not copy a tensor onto itself.
        state = unwrap(runner.model).state_dict()
        checkpoint['state_dict'] = {k: v.clone() for k, v in state.items()}
        if self._resumed:
            # Before the runner gives the optimizer its old state back.
            self._make_trainable(runner)

    def before_train(self, runner: Runner) -> None:
        """Make the training quantization-aware, just before its first step.

        Raises:
            ValueError: See ``build_calibration`` and ``Distillation``.
        """
        if not self._prepared:
            self._prepare_float(runner)
        if not self._resumed:
            self._calibrate(runner)
            self._make_trainable(runner)
        if self.distillation is not None:
            assert self._teacher is not None
            self._distillation = Distillation(
                runner.model, self._teacher, config=self.distillation
            )
            self._distillation.attach()

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Undo what the model's ``train()`` does to frozen stages and norms.

        Hosts freeze stages there, and with them the quantizers inside.
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
        """Put the recipe into a training checkpoint."""
        if not self._prepared or self._frozen:
            return
        checkpoint[TRAINING_KEY] = {
            'schema': SCHEMA,
            'version': __version__,
            'recipe': self.recipe,
            'report': self.report,
            'structure': self._structure,
            'teacher': self._teacher_digest,
            'weights': checkpoint['state_dict'],
        }
        checkpoint['state_dict'] = STATE_DICT_NOTE

    def after_train(self, runner: Runner) -> None:
        """Freeze the model and write its quantized file."""
        if self._distillation is not None:
            self._distillation.detach()
            self._distillation = None
        self._teacher = None
        self._finish(runner)
        self._trained = True

    def before_test(self, runner: Runner) -> None:
        """Freeze a model that was rebuilt from a training checkpoint."""
        if self._prepared and not self._frozen:
            self._finish(runner)

    def before_val(self, runner: Runner) -> None:
        """Likewise; inside a training nothing is to be done."""
        if not self._in_training(runner):
            self.before_test(runner)

    def _in_training(self, runner: Runner) -> bool:
        """Whether ``Runner.train()`` is running (it builds its loop first)."""
        return isinstance(runner._train_loop, BaseLoop) and not self._trained

    def _prepare_float(self, runner: Runner) -> None:
        """Prepare the float model, after a copy of it became the teacher."""
        if not runner._has_loaded:
            runner.logger.warning(
                'QATHook trains from weights that no checkpoint gave: set '
                'load_from unless they are meant.'
            )
        model = runner.model
        refuse_quantized(model)
        own = self.distillation is not None and not self.distillation.teacher
        if own or self.stage == 1:
            # Stage 2 may want it even where stage 1 did without.
            self._teacher_digest = save_teacher(model, runner.work_dir)
        if own:
            self._teacher = make_teacher(model)
        self._build_other_teacher(model)
        assert self.qconfig is not None
        self._batches = self._build_batches(runner)
        self._swap(
            runner, self.qconfig, stage=self.stage, batch=self._batches[0]
        )

    def _build_other_teacher(self, model: nn.Module) -> None:
        if self.distillation is not None and self.distillation.teacher:
            device = next(model.parameters()).device
            self._teacher = other_teacher(
                self.distillation.teacher, device=device
            )

    def _rebuild(
        self, runner: Runner, entry: Mapping[str, Any], *, training: bool
    ) -> None:
        """Make the float model one that a training checkpoint fits."""
        model = unwrap(runner.model)
        refuse_quantized(model)
        qconfig, stage = self.qconfig, self.stage
        if training:
            self._resumed = bool(runner._resume)
            check_continuation(
                entry['recipe'], self.recipe, resume=self._resumed
            )
            self._recall_teacher(runner, entry)
        else:
            self.recipe = to_plain(entry['recipe'])
            qconfig = build_qconfig(self.recipe['qconfig'], from_file=True)
            stage = self.recipe['training']['stage']
        assert qconfig is not None
        decisions = read_decisions(
            {
                'weights': entry['weights'],
                'float': (),
                'structure': entry.get('structure'),
            },
            model,
        )
        self._swap(runner, qconfig, stage=stage, decisions=decisions)
        load_training_state(model, entry['weights'])
        if not training or self._resumed:
            self.report = to_plain(entry['report'])
            self._recall_products(entry.get('structure') or {})

    def _recall_products(self, structure: Mapping[str, Any]) -> None:
        """Take over what a trace at the start of the training found."""
        if 'products' in structure:
            products = ProductReport.from_dict(structure['products'])
            self._swapped.add_products(products)
            self._keep(self._swapped)

    def _recall_teacher(
        self, runner: Runner, entry: Mapping[str, Any]
    ) -> None:
        """Find the float weights with which the training began."""
        self._teacher_digest = entry['teacher']
        if self.distillation is None:
            return
        self._build_other_teacher(runner.model)
        if self._teacher is not None:
            return
        if self._teacher_digest is None:
            raise ValueError(
                'the checkpoint is of a training without distillation, and '
                'its float weights were not kept: give distillation.teacher '
                'the config and the float checkpoint'
            )
        folders = [Path(runner.work_dir)]
        read = guarded_path(runner._load_from)
        if read is not None:
            folders.append(read.parent)
        found = find_teacher(
            runner.model, folders, digest=self._teacher_digest
        )
        # This run's own checkpoints will look for it here.
        save_teacher(found, runner.work_dir)
        self._teacher = make_teacher(found)

    def _swap(
        self,
        runner: Runner,
        qconfig: QConfig,
        *,
        stage: int,
        batch: Any = None,
        decisions: Decisions | None = None,
    ) -> None:
        """Fold and swap, and say what became of each layer."""
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
        """Keep what the files of this training say of the structure."""
        self._swapped = report
        self._structure = structure_of(report)
        self.report['swap'] = swap_summary(report)

    def _build_batches(self, runner: Runner) -> CalibrationBatches:
        """Choose the calibration images."""
        with seeded(self.seed), shared_log():
            return build_calibration(
                self.calibration,
                source=evaluation_source(runner),
                default=train_dataset(runner),
            )

    def _calibrate(self, runner: Runner) -> None:
        """Set the ranges with which the training begins."""
        batches = self._batches or self._build_batches(runner)
        self._batches = None
        with seeded(self.seed), shared_log():
            report = calibrate_rest(
                runner.model, batches, unreached=self.calibration.unreached
            )
            report_what_ran(
                runner.model,
                batches,
                swapped=self._swapped,
                calibrated=report,
                work_dir=Path(runner.work_dir),
            )
        self._keep(self._swapped)
        self.report['calibration'] = to_plain(report.to_dict())

    def _make_trainable(self, runner: Runner) -> None:
        """Turn the quantizers on; optimizer and schedulers get them."""
        self._learned = start_learning(runner.model)
        self._norms = frozen_norms(runner.model)
        rebuild_optimization(runner, self._learned, lr_mult=self.lr_mult)
        runner.logger.info(
            f'Quantization-aware training: {len(self._learned)} parameters '
            'of quantizers train besides the weights.'
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
