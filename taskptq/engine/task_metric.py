"""The metric of a config's own evaluation, for a model in memory."""

from __future__ import annotations

import copy
import time
from functools import cached_property
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn

from taskptq.analysis.page.metrics import main_metric

__all__ = ['TaskMetric']


class TaskMetric:
    """Evaluates a model with the test set and evaluator of a config.

    Args:
        config: Config of the float model.
        model: Model to evaluate, with whatever switches it has then.
        work_dir: Folder of the evaluations' logs.

    Raises:
        ValueError: If the config has no test set or no evaluator.
    """

    def __init__(
        self, config: Config, model: nn.Module, work_dir: Path
    ) -> None:
        for key in ('test_dataloader', 'test_evaluator'):
            if config.get(key) is None:
                raise ValueError(
                    f'the config sets no {key}: the metric needs a test set '
                    'and an evaluator'
                )
        self.config = config
        self.model = model
        self.work_dir = work_dir
        self._name = ''

    @property
    def name(self) -> str:
        """Name of the main metric; 'metric' until a model was evaluated."""
        return self._name or 'metric'

    def evaluate(self) -> float:
        """Run the test loop; a model that predicts nothing scores 0."""
        self._runner.model = self.model
        metrics: dict[str, Any] = self._runner.test_loop.run()
        self._name = self._name or main_metric(metrics) or ''
        return float(metrics.get(self._name) or 0.0)

    @cached_property
    def _runner(self) -> Runner:
        config = copy.deepcopy(self.config)
        config.work_dir = str(self.work_dir)
        # mmengine wants another name for each runner of a process.
        config.experiment_name = f'metric_{time.time_ns()}'
        config.load_from = None
        config.resume = False
        # They belong to the training, or quantize the model once more.
        config.custom_hooks = []
        runner = Runner.from_cfg(config)
        runner.call_hook('before_run')
        return runner
