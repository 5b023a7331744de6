"""Models, images and run information for all benchmarks."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from torch import nn

from taskptq.apis import (
    build_model,
    evaluation_source,
    load_config,
)
from taskptq.calibration import calibrate
from taskptq.engine.builder import build_qconfig
from taskptq.engine.calibration_config import CalibrationConfig
from taskptq.engine.calibration_data import (
    CalibrationBatches,
    build_calibration,
)
from taskptq.engine.checkpoint_file import (
    load_float_weights,
    local_file,
    read_checkpoint,
)
from taskptq.engine.pipeline import prepare_in_place, run_batch
from taskptq.engine.recipe_source import read_recipe
from taskptq.reconstruction.config import ReconstructionConfig
from taskptq.version import __version__

REPOSITORY = Path(__file__).resolve().parents[2]


def quiet() -> None:
    """Keep mmengine's log out of the output."""
    MMLogger.get_instance('taskptq', logger_name='taskptq', log_level='ERROR')


def load_float(config: Config, checkpoint: str) -> nn.Module:
    """Build a config's model and load a float checkpoint into it."""
    path = local_file(checkpoint)
    model = build_model(config)
    load_float_weights(model, read_checkpoint(path), path=path)
    return model.eval()


def calibration_batches(
    config: Config, *, num_images: int, batch_size: int
) -> CalibrationBatches:
    """Return images of the training split, read on access."""
    return build_calibration(
        CalibrationConfig(num_images=num_images, batch_size=batch_size),
        source=evaluation_source(config),
        default=config.train_dataloader.dataset,
    )


def test_batches(
    config: Config, *, batch_size: int, limit: int | None
) -> list[Any]:
    """Read the test set into memory, so that only the model is timed."""
    source = evaluation_source(config)
    count = len(source.dataset)
    count = count if limit is None else min(limit, count)
    return [
        source.collate(
            [
                source.dataset[i]
                for i in range(start, min(start + batch_size, count))
            ]
        )
        for start in range(0, count, batch_size)
    ]


def prepared(
    model: nn.Module, batches: Sequence[Any], *, recipe: str
) -> nn.Module:
    """Swap and calibrate a float model in place, without rewrites.

    Args:
        model: Float model.
        batches: Calibration batches.
        recipe: Name of the recipe, or a file that sets its parts.
    """
    prepare_in_place(model, build_qconfig(read_recipe(recipe)['qconfig']))
    calibrate(model, batches, forward=run_batch)
    return model


def reconstruction(recipe: str, **overrides: Any) -> ReconstructionConfig:
    """Read a recipe's ``reconstruction``, with some settings replaced."""
    settings = read_recipe(recipe).get('reconstruction') or {}
    return ReconstructionConfig.from_dict({**settings, **overrides})


def read_config(path: str) -> Config:
    """Read a config and enter its scope."""
    return load_config(path)


@contextmanager
def single_seed(seed: int = 0) -> Iterator[None]:
    """Use a fixed seed inside the context."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def environment() -> dict[str, Any]:
    """Return what the numbers depend on, besides the code."""
    return {
        'taskptq': __version__,
        'torch': torch.__version__,
        'python': platform.python_version(),
        'machine': platform.machine(),
        'cpus': len(os.sched_getaffinity(0))
        if hasattr(os, 'sched_getaffinity')
        else os.cpu_count(),
        'threads': torch.get_num_threads(),
    }


def commit() -> str | None:
    """Return the checkout's commit, None outside a checkout."""
    try:
        done = subprocess.run(
            ['git', 'rev-parse', 'HEAD'],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
        )
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def write_result(
    result: dict[str, Any], *, name: str, out: str | None
) -> Path:
    """Write the result of a benchmark.

    Args:
        result: Plain types.
        name: Name of the benchmark and, if any, of the model.
        out: JSON file; None is ``work_dirs/benchmark/<name>.json``.
    """
    path = Path(out or f'work_dirs/benchmark/{name}.json')
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        'benchmark': name,
        **result,
        'command': shlex.join(['python', *sys.argv]),
        'commit': commit(),
        'environment': environment(),
    }
    path.write_text(json.dumps(content, indent=1) + '\n', encoding='utf-8')
    return path
