"""The rows of the demo, each one run of ``tools/test.py``."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIGS = 'projects/demo/configs'
NAME = 'retinanet_r18-quarter_fpn'
FLOAT_CONFIG = f'{CONFIGS}/{NAME}_parts.py'
CHECKPOINT = f'{CONFIGS}/checkpoints/{NAME}_parts.pth'
# Rows that run at the same time. Half of a row is start-up and data, which
# take one core, so two rows share the machine better than one fills it.
LANES = 2
# What of a failed run's log is shown.
TAIL_LINES = 15


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model to test.

    Args:
        key: Name of its work folder.
        title: What the table calls it.
        config: Config file, relative to the repository.
    """

    key: str
    title: str
    config: str


ROWS = (
    Row(key='float', title='float', config=FLOAT_CONFIG),
    Row(
        key='w8a8',
        title='W8A8, plain (MinMax)',
        config=f'{CONFIGS}/{NAME}_minmax-w8a8_calib64_parts.py',
    ),
    Row(
        key='plain',
        title='W2A4, plain (MinMax)',
        config=f'{CONFIGS}/{NAME}_minmax-w2a4_calib64_parts.py',
    ),
    Row(
        key='learned',
        title='W2A4, reconstructed (QDrop)',
        config=f'{CONFIGS}/{NAME}_qdrop-w2a4_calib64_parts.py',
    ),
)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one run gave.

    Args:
        row: The row.
        command: Command line that was run, from the repository's top level.
        ap: Average precision over IoU 0.5 to 0.95, in [0, 1].
        ap50: Average precision at IoU 0.5, in [0, 1].
        file_bytes: Size of the model's file; float32 weights for float.
        seconds: Wall time of the command.
    """

    row: Row
    command: str
    ap: float
    ap50: float
    file_bytes: int
    seconds: float


def threads_per_row() -> int:
    """Number of threads that a row may use."""
    return max((os.cpu_count() or 1) // LANES, 1)


def row_environment() -> dict[str, str]:
    """Environment of a row; what the user sets about threads wins."""
    own = {'OMP_NUM_THREADS': str(threads_per_row())}
    return {**own, **os.environ}


def arguments_of(row: Row, *, work_dir: Path) -> list[str]:
    """Return the command line of a row, without Python itself.

    Args:
        row: What to run.
        work_dir: Where its files go.
    """
    return [
        'tools/test.py',
        row.config,
        CHECKPOINT,
        '--work-dir',
        work_dir.as_posix(),
        '--out',
        (work_dir / 'metrics.json').as_posix(),
    ]


def command_of(row: Row, *, work_dir: Path) -> str:
    """Return the command line of a row, from the repository's top level."""
    return shlex.join(['python', *arguments_of(row, work_dir=work_dir)])


def run_row(row: Row, *, root: Path, work_dir: Path) -> Measured:
    """Test one row as a user would, in a process of its own.

    Args:
        row: What to run.
        root: The repository.
        work_dir: Where its files go; relative to ``root``.

    Raises:
        RuntimeError: If the command fails; with the end of its log.
    """
    out = work_dir / 'metrics.json'
    arguments = arguments_of(row, work_dir=work_dir)
    (root / work_dir).mkdir(parents=True, exist_ok=True)
    (root / out).unlink(missing_ok=True)
    log = root / work_dir / 'output.log'
    start = time.perf_counter()
    with log.open('w', encoding='utf-8') as file:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=root,
            env=row_environment(),
            stdout=file,
            stderr=subprocess.STDOUT,
            check=False,
        )
    seconds = time.perf_counter() - start
    if done.returncode != 0:
        tail = log.read_text(errors='replace').splitlines()[-TAIL_LINES:]
        raise RuntimeError(
            '\n'.join(
                [
                    f'{row.title}: python {" ".join(arguments)} ended with '
                    f'code {done.returncode}; the end of {log}:',
                    *tail,
                ]
            )
        )
    result = json.loads((root / out).read_text())
    return Measured(
        row=row,
        command=command_of(row, work_dir=work_dir),
        ap=_metric(result, 'coco/bbox_mAP'),
        ap50=_metric(result, 'coco/bbox_mAP_50'),
        file_bytes=_file_bytes(result, root=root),
        seconds=seconds,
    )


def _metric(result: dict[str, Any], name: str) -> float:
    """Return a metric; mmdet gives none at all where nothing is detected."""
    return float(result['metrics'].get(name, 0.0))


def _file_bytes(result: dict[str, Any], *, root: Path) -> int:
    """Size of the quantized file, or of the float model as float32."""
    if result['quantization'] is not None:
        return int(result['quantization']['file_bytes'])
    # Loaded late: torch takes seconds, and rows run in processes of their own.
    from taskptq.engine.checkpoint_file import read_checkpoint

    weights = read_checkpoint(root / CHECKPOINT)['state_dict']
    return sum(4 * tensor.numel() for tensor in weights.values())
