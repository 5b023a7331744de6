"""What PTQHook shows and writes about an evaluation."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from logging import WARNING
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.logging import print_log
from mmengine.runner import Runner
from mmengine.runner.base_loop import BaseLoop

from taskptq.analysis.page.metrics import main_metric
from taskptq.analysis.page.render import MissingPackageError, check_packages
from taskptq.analysis.page.side_files import record_metrics
from taskptq.core.progress import PartDone, Progress
from taskptq.engine.class_metrics import ClassMetrics
from taskptq.engine.page import make_page
from taskptq.export.checkpoint import QuantizedCheckpointError

__all__ = [
    'Evaluation',
    'closing_line',
    'loss_recorder',
    'page_path',
    'write_page',
]


class Evaluation:
    """Progress and results of one evaluation of a quantized model.

    ``summary`` is a line on the result, '' before there is any. Whoever
    prints it elsewhere unsets ``logs_summary``.

    Args:
        page: Whether to write a page at the end.

    Raises:
        MissingPackageError: If what draws the page is not installed.
    """

    def __init__(self, *, page: bool) -> None:
        if page:
            check_packages()
        self.page = page
        self.file: Path | None = None
        self.digest = ''
        self.summary = ''
        self.logs_summary = True
        self.float_path: Path | None = None
        self._progress: Progress | None = None
        self._classes: ClassMetrics | None = None

    def set_file(
        self, file: Path | None, digest: str, *, float_path: Path | None
    ) -> None:
        """Say what is evaluated.

        Args:
            file: Quantized file; None if there is none.
            digest: Its digest.
            float_path: Float checkpoint that it was made from, if known.
        """
        self.file, self.digest, self.float_path = file, digest, float_path

    def start(self, loop: BaseLoop) -> None:
        """Open the display; the runner itself logs lines.

        Args:
            loop: The evaluation that begins.
        """
        self.stop()
        self._classes = ClassMetrics(loop.evaluator)
        if is_main_process():
            total = len(loop.dataloader)
            self._progress = Progress('evaluate', total=total, lines=False)
            self._progress.__enter__()

    def advance(self) -> None:
        """Count a batch."""
        if self._progress is not None:
            self._progress.advance()

    def stop(self) -> None:
        """Close the display."""
        if self._progress is not None:
            self._progress.__exit__(None, None, None)
            self._progress = None

    def finish(self, runner: Runner, metrics: Mapping[str, Any]) -> None:
        """Record the metrics beside the file, and write the page.

        Args:
            runner: The runner; its visualizer gets the metrics as well.
            metrics: What the evaluator returned.
        """
        self.stop()
        classes = {} if self._classes is None else self._classes.classes
        if self.file is None or not is_main_process():
            return
        try:
            path = record_metrics(
                self.file.parent,
                metrics,
                digest=self.digest,
                file=self.file.name,
                classes=classes,
            )
        except OSError as error:
            runner.logger.warning(f'The metrics were not recorded: {error}')
            return
        scalars = {
            f'taskptq/{name}': float(value)
            for name, value in metrics.items()
            if isinstance(value, (int, float))
        }
        runner.visualizer.add_scalars(scalars)
        runner.logger.info(f'Metrics recorded in {path}')
        if self.page:
            write_page(
                self.file,
                config=runner.cfg,
                float_checkpoint=self.float_path,
                device=next(runner.model.parameters()).device,
            )
        self.summary = closing_line(
            self.file,
            metrics,
            command='' if self.page else self._report_command(runner),
        )

    def log_summary(self, runner: Runner) -> None:
        """Log the summary, if there is one and nobody else prints it."""
        if self.summary and self.logs_summary:
            runner.logger.info(self.summary)

    def _report_command(self, runner: Runner) -> str:
        words = ['taskptq', 'report', runner.cfg.filename or 'CONFIG']
        words.append(str(self.file))
        if self.float_path is not None:
            words += ['--float', str(self.float_path)]
        return shlex.join(words)


def write_page(
    file: str | Path,
    *,
    config: Config,
    float_checkpoint: str | Path | None,
    device: str | torch.device,
    trust_checkpoint: bool = False,
) -> None:
    """Write the page of a quantized file beside it.

    A page that cannot be written is a warning: the work before it has ended
    well.

    Args:
        file: Quantized file.
        config: Config of the float model.
        float_checkpoint: Float weights, or None.
        device: Where the models run.
        trust_checkpoint: Whether to unpickle what is not plain.
    """
    page = page_path(Path(file))
    try:
        make_page(
            [file],
            out=page,
            config=config,
            float_checkpoint=float_checkpoint,
            device=device,
            trust_checkpoint=trust_checkpoint,
        )
    except (
        OSError,
        MissingPackageError,
        QuantizedCheckpointError,
        ValueError,
    ) as error:
        print_log(f'The page was not written: {error}', 'current', WARNING)
        return
    print_log(f'Page: {page}', logger='current')


def page_path(file: Path) -> Path:
    """Return where the page of a quantized file goes.

    >>> page_path(Path('work_dirs/a/q.pth')).as_posix()
    'work_dirs/a/report.html'
    """
    return file.parent / 'report.html'


def closing_line(
    file: Path,
    metrics: Mapping[str, Any] | None = None,
    *,
    command: str = '',
) -> str:
    """Return the last line of a run: file, size, metric, what to do next.

    Args:
        file: Quantized file.
        metrics: What was measured, if anything was.
        command: The next command.
    """
    parts = [f'{file}: {file.stat().st_size / 2**20:.2f} MiB']
    name = main_metric(metrics or {})
    if metrics and name is not None:
        parts.append(f'{name} {metrics[name]:.4g}')
    return ', '.join(parts) + (f'; next: {command}' if command else '')


def loss_recorder(runner: Runner) -> Callable[[PartDone], None]:
    """Return a listener that hands losses to the runner's visualizer.

    They reach the backends of the user's config, such as TensorBoard, as
    ``taskptq/unit_loss``, by the number of the unit.

    Args:
        runner: The runner.
    """

    def record(done: PartDone) -> None:
        if done.loss is not None:
            runner.visualizer.add_scalar(
                f'taskptq/{done.title}_loss', done.loss, step=done.index
            )

    return record
