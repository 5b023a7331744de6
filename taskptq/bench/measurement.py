"""Measure the rows of a table in one process, building everything once."""

from __future__ import annotations

import copy
import hashlib
import os
import platform
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from taskptq.bench.float_runner import (
    build_runner,
    checkpoint_file,
    measured_config,
)
from taskptq.bench.metric_numbers import finite_numbers, watch_classes
from taskptq.bench.peers import is_peer, measure_peer
from taskptq.bench.published_eval import published_note, quantize_as_published
from taskptq.bench.row_notes import (
    reconstruction_seconds,
    resume_note,
    rewrite_notes,
    set_loss_note,
)
from taskptq.bench.table import Row, Table
from taskptq.engine.calibration_config import CalibrationConfig
from taskptq.engine.calibration_data import (
    EvaluationSource,
    build_calibration,
)
from taskptq.engine.checkpoint_file import (
    load_float_weights,
    local_file,
    read_checkpoint,
)
from taskptq.engine.contexts import seeded
from taskptq.engine.datasets import loader_pipeline
from taskptq.engine.pipeline import apply_rewrites, quantize_model
from taskptq.engine.recipe import Recipe
from taskptq.engine.recipe_source import with_recipe
from taskptq.recipes import resolve
from taskptq.registry import SUPPORTED_VERSIONS, installed_version
from taskptq.version import __version__

WORK_DIR = Path('work_dirs') / 'tables'
WATCHED = (
    'taskptq',
    'configs/_base_',
    'tools',
    'projects/*/*/*.py',
    'projects/*/configs/_base_',
)


class Replay(Sequence[Any]):
    """Batches in memory, of which every reader gets copies.

    A model may write into the samples of its batch, but the next model must
    get the original ones.

    Args:
        batches: Collated batches.
    """

    def __init__(self, batches: Sequence[Any]) -> None:
        self._batches = list(batches)

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self._batches)

    def __getitem__(self, index: Any) -> Any:
        """Return a copy of one batch, or of a slice of them."""
        return copy.deepcopy(self._batches[index])

    def __iter__(self) -> Iterator[Any]:
        """Copy the batches one after another."""
        return (self[index] for index in range(len(self)))


class Measurement:
    """The float model and data of a table, and the measurement of its rows.

    Args:
        table: Table to measure.
        device: ``cpu`` or ``cuda``; None uses a GPU if there is one.
        work_dir: Folder of logs, reports and of the state to resume from.

    Raises:
        SettingError: If a row's recipe does not exist.
    """

    def __init__(
        self,
        table: Table,
        *,
        device: str | None = None,
        work_dir: Path | None = None,
    ) -> None:
        self.table = table
        self.work_dir = work_dir or WORK_DIR / f'{table.name}_{table.split}'
        self.commit = current_commit()
        path = checkpoint_file(table)
        # Imports the project whose recipes the rows name.
        cfg = measured_config(table, self.work_dir)
        for row in table.rows():
            if not is_peer(row.method):
                resolve(row.recipe)
        self.evaluator = cfg.test_evaluator
        # Runs first, since the others may need the file it writes.
        self.reference = cfg.get('reference_evaluator')
        cfg.test_evaluator = self.reference or cfg.test_evaluator
        self.runner = build_runner(cfg)
        self.loop = self.runner.test_loop
        self.model = self.runner.model
        if device is not None:
            self.model.to(device)
        load_float_weights(self.model, read_checkpoint(path), path=path)
        self.model.eval()
        self._batches: dict[int, Replay] = {}

    def environment(self) -> dict[str, Any]:
        """Return versions and resources, without a machine's name."""
        device = next(self.model.parameters()).device
        return describe_environment(device)

    def measure_float(self) -> dict[str, Any]:
        """Evaluate the float model."""
        model = copy.deepcopy(self.model)
        rewritten = self.rewrite(model)
        metrics, seconds = self.evaluate(model)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / 'float.pth'
            torch.save({'state_dict': self.model.state_dict()}, file)
            size = file.stat().st_size
        return {
            'config': self.table.config,
            'checkpoint': self.table.checkpoint,
            **self.scores(metrics),
            'eval_seconds': round(seconds, 2),
            'file_bytes': size,
            'sha256': file_digest(self.table.checkpoint),
            **({'rewrites': rewritten} if rewritten else {}),
        }

    def rewrite(self, model: nn.Module) -> list[Any]:
        """Run the table's own rewrites and return their reports."""
        if not self.table.rewrites:
            return []
        images = CalibrationConfig.from_dict(self.table.calibration, seed=0)
        return apply_rewrites(model, self.batches(images), self.table.rewrites)

    def measure(self, row: Row) -> dict[str, Any]:
        """Quantize a copy of the float model, and evaluate it.

        Args:
            row: Row to measure.

        Raises:
            ValueError: If the row's settings are invalid.
        """
        if is_peer(row.method):
            return measure_peer(self, row)
        images = self.images(row)
        recipe = read_recipe(row, images=images)
        model = copy.deepcopy(self.model)
        report = self.quantize(model, recipe=recipe, row=row)
        # Random drops are the same in each evaluation.
        with seeded(row.seed):
            metrics, seconds = self.evaluate(model)
        rebuilt = report['reconstruction'] or {}
        settings = recipe.reconstruction or {}
        learned = settings.get('rounding', 'adaround') != 'gptq'
        return {
            'method': row.method,
            'bits': row.bits,
            'seed': row.seed,
            'recipe': row.recipe,
            **self.scores(metrics),
            'calibration_seconds': round(report['calibration']['seconds'], 2),
            'reconstruction_seconds': reconstruction_seconds(rebuilt),
            'eval_seconds': round(seconds, 2),
            'file_bytes': report.get('file_bytes'),
            'checkpoint': None,
            'command': self.table.command(row),
            'commit': self.commit,
            'steps': settings.get('steps') if learned else None,
            'scope': row.scope,
            'decided': rebuilt.get('decided'),
            'turned': rebuilt.get('turned'),
            **resume_note(rebuilt),
            **set_loss_note(rebuilt),
            **published_note(report),
            **rewrite_notes(report),
        }

    def images(self, row: Row) -> CalibrationConfig:
        """Return the settings of the row's calibration images."""
        return CalibrationConfig.from_dict(
            self.table.calibration, seed=row.seed
        )

    def batches(self, images: CalibrationConfig) -> Replay:
        """Read the calibration batches of a seed, once."""
        if images.seed not in self._batches:
            source = EvaluationSource.from_loader(
                self.loop.dataloader,
                plain_pipeline=loader_pipeline(
                    self.runner.cfg.get('val_dataloader')
                ),
            )
            train = self.runner.cfg.get('train_dataloader') or {}
            self._batches[images.seed] = Replay(
                build_calibration(
                    images, source=source, default=train.get('dataset')
                )
            )
        return self._batches[images.seed]

    def quantize(
        self, model: nn.Module, *, recipe: Recipe, row: Row
    ) -> dict[str, Any]:
        """Quantize a model in place; only the size of its file is kept."""
        dataset = self.loop.dataloader.dataset
        meta = {'dataset_meta': getattr(dataset, 'metainfo', {})}
        folder = self.work_dir / row.name.replace(' ', '_')
        if row.published:
            return quantize_as_published(
                model,
                self.batches(self.images(row)),
                recipe=recipe,
                work_dir=folder,
            )
        with tempfile.TemporaryDirectory() as temporary:
            return quantize_model(
                model,
                self.batches(self.images(row)),
                recipe=recipe,
                work_dir=folder,
                out=Path(temporary) / 'quantized.pth',
                shared_dir=self.shared_dir(),
                meta=meta,
            )

    def shared_dir(self) -> Path | None:
        """Return the folder of reconstructed blocks that rows share.

        Only rows measured at the same commit share them, since the digest of
        a state does not cover the code.
        """
        if not re.fullmatch('[0-9a-f]{40}', self.commit):
            return None
        return self.work_dir / 'blocks' / self.commit

    def evaluate(
        self, model: nn.Module, *, evaluator: Any = None
    ) -> tuple[dict[str, float], float]:
        """Run the test loop with a fresh evaluator.

        Args:
            model: Model to evaluate.
            evaluator: Config of other metrics than the table's.

        Returns:
            Its metrics, flat, and the wall time in seconds.
        """
        if evaluator is None and self.reference is not None:
            reference, self.reference = self.reference, None
            self.evaluate(copy.deepcopy(self.model), evaluator=reference)
        evaluator = self.runner.build_evaluator(evaluator or self.evaluator)
        dataset = self.loop.dataloader.dataset
        evaluator.dataset_meta = getattr(dataset, 'metainfo', None)
        by_class = watch_classes(evaluator)
        self.runner.model = model
        self.loop.evaluator = evaluator
        start = time.perf_counter()
        metrics = self.loop.run()
        seconds = time.perf_counter() - start
        return finite_numbers({**metrics, **by_class}), seconds

    def scores(self, metrics: Mapping[str, float]) -> dict[str, Any]:
        """Return value and metrics of a row.

        Raises:
            ValueError: If the table's metric is not among them.
        """
        if not metrics:
            return {
                'value': 0.0,
                'metrics': {},
                'note': 'the evaluator gave no metric: nothing was predicted',
            }
        if self.table.metric not in metrics:
            raise ValueError(
                f'{self.table.path}: metric is {self.table.metric!r}, but the '
                f'evaluator gave {sorted(metrics)}'
            )
        return {'value': metrics[self.table.metric], 'metrics': dict(metrics)}


def read_recipe(row: Row, *, images: CalibrationConfig) -> Recipe:
    """Read a row's recipe, with the table's changes.

    The table's ``reconstruction`` only changes the settings of recipes that
    have one.

    Args:
        row: The row.
        images: Its calibration images.

    Raises:
        SettingError: If there is no such recipe, or it is for training.
    """
    changes: dict[str, Any] = {'qconfig': dict(row.qconfig)}
    if resolve(row.recipe).get('reconstruction') is not None:
        changes['reconstruction'] = dict(row.reconstruction)
    parts = with_recipe(
        [row.recipe, changes],
        owner='a table',
        qconfig=None,
        reconstruction=None,
        loss=None,
        rewrites=None,
        mixed_precision=None,
    )
    return Recipe.from_config(
        parts['qconfig'],
        reconstruction=parts['reconstruction'],
        loss=parts['loss'],
        rewrites=[*row.rewrites, *(parts['rewrites'] or [])],
        mixed_precision=parts['mixed_precision'],
        calibration=images.recipe(),
        seed=row.seed,
    )


def file_digest(path: str | Path) -> str:
    """Return a file's SHA-256."""
    return hashlib.sha256(local_file(path).read_bytes()).hexdigest()


def current_commit() -> str:
    """Return git's HEAD, with ``-dirty`` if measured code was changed."""

    def git(*words: str) -> str:
        done = subprocess.run(
            ['git', *words], capture_output=True, text=True, check=False
        )
        return done.stdout.strip() if done.returncode == 0 else ''

    head = git('rev-parse', '--verify', '--quiet', 'HEAD') or 'uncommitted'
    changed = git('status', '--porcelain', '--', *WATCHED)
    return f'{head}-dirty' if changed else head


def describe_environment(device: torch.device) -> dict[str, Any]:
    """Return versions and resources.

    Args:
        device: Device of the model.
    """
    versions = {name: installed_version(name) for name in SUPPORTED_VERSIONS}
    name = (
        torch.cuda.get_device_name(device)
        if device.type == 'cuda'
        else device.type
    )
    return {
        'taskptq': __version__,
        'python': platform.python_version(),
        'torch': str(torch.__version__),
        **{key: value for key, value in versions.items() if value},
        'device': name,
        'cpu_count': os.cpu_count(),
        'threads': torch.get_num_threads(),
    }
