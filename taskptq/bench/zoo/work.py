"""Make, evaluate and export one file of the zoo, with the users' commands."""

from __future__ import annotations

import hashlib
import json
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskptq.bench.zoo.source import ZooFile
from taskptq.engine.onnx_metadata import part_path, read_metadata
from taskptq.export.runtime import read_onnx

WORK_DIR = Path('work_dirs') / 'zoo'
# Takes a command's arguments, without its name.
Command = Callable[[list[str]], object]


@dataclass(frozen=True, kw_only=True)
class Tools:
    """The commands that do the work: ``taskptq quantize``, ``test``, ...

    Args:
        quantize: Writes the file after ``--out``.
        test: Writes a JSON file with ``metrics`` after ``--out``.
        export: Writes the ONNX files of ``--out``.
    """

    quantize: Command
    test: Command
    export: Command


def quantize_words(file: ZooFile, out: Path) -> list[str]:
    """Return the arguments of ``taskptq quantize`` that make a file.

    Args:
        file: The file.
        out: Where to write it.
    """
    recipes = [word for one in file.recipe for word in ('--recipe', one)]
    return [
        file.table.config,
        file.table.checkpoint,
        *recipes,
        '--num-images',
        str(file.num_images),
        '--seed',
        str(file.seed),
        '--device',
        'cpu',
        '--out',
        out.as_posix(),
    ]


def command_line(file: ZooFile) -> str:
    """Return the command that makes a file, for readers."""
    return shlex.join(
        ['taskptq', 'quantize', *quantize_words(file, Path('q.pth'))]
    )


def digest(path: Path) -> str:
    """Return a file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def build(
    file: ZooFile, *, tools: Tools, folder: Path, resume: bool = False
) -> Path:
    """Quantize the float model.

    Args:
        file: The file to make.
        tools: The commands.
        folder: Work folder of this file.
        resume: Take what an interrupted run has left there.
    """
    out = folder / 'quantized.pth'
    if not (resume and out.is_file()):
        tools.quantize(quantize_words(file, out))
    return out


def evaluate(
    file: ZooFile,
    path: Path,
    *,
    tools: Tools,
    folder: Path,
    resume: bool = False,
) -> dict[str, float]:
    """Evaluate a quantized or exported file with the host.

    Args:
        file: What the zoo lists.
        path: The file to evaluate.
        tools: The commands.
        folder: Work folder of this file.
        resume: Take what an interrupted run has measured of the same bytes.

    Returns:
        The finite metrics, by the names that the evaluator gives them.

    Raises:
        ValueError: If the evaluator does not give the listed metric.
    """
    out = folder / f'metrics-{digest(path)[:16]}.json'
    if not (resume and out.is_file()):
        tools.test(
            [
                file.table.config,
                path.as_posix(),
                '--out',
                out.as_posix(),
                '--work-dir',
                (folder / 'test').as_posix(),
            ]
        )
    metrics = finite(json.loads(out.read_text(encoding='utf-8'))['metrics'])
    if file.metric not in metrics:
        raise ValueError(
            f'{file.name}: metric is {file.metric!r}, but the evaluator of '
            f'{file.table.config} gives {", ".join(sorted(metrics))}'
        )
    return metrics


def export(
    file: ZooFile,
    path: Path,
    *,
    tools: Tools,
    folder: Path,
    resume: bool = False,
) -> list[Path]:
    """Export a quantized file for ONNX Runtime.

    Args:
        file: What the zoo lists.
        path: The quantized file.
        tools: The commands.
        folder: Work folder of this file.
        resume: Take what an interrupted run has left there.

    Returns:
        The files of its parts, the one that is evaluated first.
    """
    out = folder / 'model.onnx'
    if not (resume and out.is_file()):
        tools.export(
            [
                file.table.config,
                path.as_posix(),
                '--target',
                'onnxruntime',
                '--out',
                out.as_posix(),
                *(['--dynamic'] if file.dynamic else []),
                *_images(file),
            ]
        )
    return parts_of(out)


def _images(file: ZooFile) -> list[str]:
    number = file.export_images
    return [] if number is None else ['--num-images', str(number)]


def parts_of(path: Path) -> list[Path]:
    """Return the files of an exported model, its first one first."""
    names: Sequence[str] = read_metadata(read_onnx(path)).parts
    others = [part_path(path, name) for name in names]
    return [path, *(other for other in others if other != path)]


def finite(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Keep what is a finite number."""
    return {
        name: float(value)
        for name, value in metrics.items()
        if isinstance(value, (int, float)) and math.isfinite(value)
    }
