"""Time of the zoo's ONNX files beside that of their float models.

Both run in turn in one process of one thread, one image at a time, and
processor time counts, so that a busy machine slows both alike: the ratio says
more than either number. Of a model of several parts the first is run, which
sees the whole image (of two-stage detectors backbone, neck and RPN).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from taskptq.bench.onnx_speed import example_inputs, measure, open_session
from taskptq.bench.zoo.check import copied
from taskptq.bench.zoo.source import ZooFile
from taskptq.bench.zoo.work import Tools, build, digest, export
from taskptq.engine.onnx_metadata import read_metadata
from taskptq.export.runtime import read_onnx

WARMUP = 3
RUNS = 20
THREADS = 1


def has_export(record: Mapping[str, Any] | None) -> bool:
    """Whether a record lists an ONNX file."""
    return 'parts' in ((record or {}).get('onnx') or {})


def measure_latency(
    file: ZooFile,
    record: Mapping[str, Any],
    *,
    tools: Tools,
    folder: Path,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Time a file's export and its float model's.

    Args:
        file: What the zoo lists.
        record: What was measured of it; has an export.
        tools: The commands.
        folder: Work folder of this file.
        facts: ``commit`` and ``environment``.

    Returns:
        The record's ``latency``: medians of processor time in ms, their
        ratio, ``size`` of the image, ``threads``, ``runs``, ``command`` and
        the facts.

    Raises:
        ValueError: If the export that was made again is not the listed one.
    """
    path = listed_export(file, record, tools=tools, folder=folder)
    size = read_metadata(read_onnx(path)).input_size
    floating = export_float(file, size=size, tools=tools, folder=folder)
    size = size or read_metadata(read_onnx(floating)).input_size
    assert size is not None
    float_ms, integer_ms = median_times([floating, path], size=size)
    return {
        'float_ms': float_ms,
        'integer_ms': integer_ms,
        'ratio': round(float_ms / integer_ms, 3),
        'size': list(size),
        'threads': THREADS,
        'runs': RUNS,
        'command': f"taskptq bench zoo --latency --only '^{file.name}$'",
        **facts,
    }


def listed_export(
    file: ZooFile, record: Mapping[str, Any], *, tools: Tools, folder: Path
) -> Path:
    """Return the first part of a file's export, made again if need be.

    Args:
        file: What the zoo lists.
        record: What was measured of it.
        tools: The commands.
        folder: Work folder of this file.

    Raises:
        ValueError: If it has another SHA-256 than listed.
    """
    onnx = record['onnx']
    if onnx['committed']:
        parts = [Path(part['file']) for part in onnx['parts']]
        found = copied(parts, folder=folder)
    else:
        made = Path(record['file'])
        if not record['committed']:
            made = build(file, tools=tools, folder=folder, resume=True)
        found = export(file, made, tools=tools, folder=folder, resume=True)[0]
    if digest(found) != onnx['parts'][0]['sha256']:
        raise ValueError(
            f'{found} has SHA-256 {digest(found)}, listed is '
            f'{onnx["parts"][0]["sha256"]}: `taskptq bench zoo --write '
            f"--rebuild --only '^{file.name}$'` makes it anew"
        )
    return found


def export_float(
    file: ZooFile, *, size: Sequence[int] | None, tools: Tools, folder: Path
) -> Path:
    """Export the float model of a file.

    Args:
        file: What the zoo lists.
        size: Height and width; None takes those of a training image.
        tools: The commands.
        folder: Work folder of this file.
    """
    out = folder / 'float.onnx'
    sized = ['--num-images', '1']
    if size is not None:
        sized = ['--num-images', '0', '--size', *map(str, size)]
    tools.export(
        [
            file.table.config,
            file.table.checkpoint,
            '--float',
            *('--target', 'onnxruntime', '--out', out.as_posix()),
            *sized,
        ]
    )
    return out


def median_times(paths: Sequence[Path], *, size: Sequence[int]) -> list[float]:
    """Run files in turn; return the median processor time of each, in ms.

    Args:
        paths: The files.
        size: Height and width of the image, where they are free.
    """
    height, width = size
    runs = {}
    for path in paths:
        session = open_session(path, threads=THREADS)
        inputs = example_inputs(session.ports, size=(height, width))
        runs[str(path)] = partial(session, *inputs)
    timings = measure(runs, warmup=WARMUP, repeats=RUNS)
    return [float(timing.to_dict()['cpu_ms']) for timing in timings]
