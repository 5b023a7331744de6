"""Compare the zoo's files with what is printed of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from taskptq.bench.zoo.records import is_outdated, printed, publish
from taskptq.bench.zoo.source import ZooFile
from taskptq.bench.zoo.work import Tools, build, digest, evaluate, export

WRITE = '`taskptq bench zoo --write`'


def check_file(
    file: ZooFile,
    record: Mapping[str, Any] | None,
    *,
    tools: Tools,
    folder: Path,
    rebuild: bool = False,
    resume: bool = False,
) -> list[str]:
    """Run a listed file again.

    What lies in the repository must have the listed SHA-256; what does not is
    made again and must have it as well. Each is evaluated, as are the ONNX
    files.

    Args:
        file: What the zoo lists.
        record: What was measured of it.
        tools: The commands.
        folder: Work folder of this file.
        rebuild: Make files again that lie in the repository, too.
        resume: Go on with an interrupted run.

    Returns:
        A sentence for each thing that differs, none if all is as printed.
    """
    if record is None:
        return [f'{file.name} was never made: {WRITE} does']
    if is_outdated(file, record):
        return [
            f'{file.name} is listed with other settings than it was made '
            f'with: {WRITE} makes it again'
        ]
    problems = []
    path = Path(record['file'])
    if record['committed']:
        problems += stored_problems(path, record)
    if rebuild or not record['committed']:
        made = build(file, tools=tools, folder=folder, resume=resume)
        problems += rebuilt_problems(made, record, name=file.name)
        path = path if record['committed'] else made
    if record['committed'] and problems:
        # A damaged file is not worth an evaluation.
        return problems
    run = copied([path], folder=folder) if record['committed'] else path
    metrics = evaluate(file, run, tools=tools, folder=folder, resume=resume)
    problems += metric_problems(metrics, record, metric=file.metric, path=path)
    problems += _onnx_problems(
        file,
        path,
        record,
        tools=tools,
        folder=folder,
        resume=resume,
    )
    return problems


def copied(paths: Sequence[Path], *, folder: Path) -> Path:
    """Copy files of the repository, where an evaluation leaves reports.

    Args:
        paths: The files of one model.
        folder: Work folder.

    Returns:
        The copy of the first.
    """
    copies = [folder / 'stored' / path.name for path in paths]
    for path, copy in zip(paths, copies, strict=True):
        publish(path, copy)
    return copies[0]


def stored_problems(path: Path, record: Mapping[str, Any]) -> list[str]:
    """Compare a file of the repository with its SHA-256.

    Args:
        path: The file.
        record: Has ``sha256``.
    """
    if not path.is_file():
        return [f'{path} is listed, but there is no such file']
    found = digest(path)
    if found == record['sha256']:
        return []
    return [
        f'{path} is damaged or another file: its SHA-256 is {found}, listed '
        f'is {record["sha256"]}'
    ]


def rebuilt_problems(
    path: Path, record: Mapping[str, Any], *, name: str
) -> list[str]:
    """Compare a file that was made again with the listed SHA-256.

    Args:
        path: The file.
        record: Has ``sha256`` and ``environment``.
        name: Its name in the list.
    """
    found = digest(path)
    if found == record['sha256']:
        return []
    where = record.get('environment', {})
    return [
        f'{name} was made again with SHA-256 {found}, listed is '
        f'{record["sha256"]} (torch {where.get("torch")}, {path})'
    ]


def metric_problems(
    metrics: Mapping[str, float],
    record: Mapping[str, Any],
    *,
    metric: str,
    path: Path,
) -> list[str]:
    """Compare a metric with its printed digits.

    Args:
        metrics: What the evaluator gave.
        record: Has ``value``.
        metric: Name of the metric.
        path: The file that was evaluated.
    """
    found, listed = printed(metrics[metric]), printed(record['value'])
    if found == listed:
        return []
    return [f'{path}: {metric} is {found}, listed is {listed}']


def _onnx_problems(
    file: ZooFile,
    path: Path,
    record: Mapping[str, Any],
    *,
    tools: Tools,
    folder: Path,
    resume: bool,
) -> Iterator[str]:
    """Yield what differs in a file's export."""
    listed = record.get('onnx')
    if not listed or 'refused' in listed:
        return
    if listed['committed']:
        parts = [Path(part['file']) for part in listed['parts']]
        found = [
            problem
            for part, entry in zip(parts, listed['parts'], strict=True)
            for problem in stored_problems(part, entry)
        ]
        if found:
            yield from found
            return
        run = copied(parts, folder=folder)
    else:
        parts = export(file, path, tools=tools, folder=folder, resume=resume)
        run = parts[0]
    if listed.get('value') is None:
        return
    metrics = evaluate(file, run, tools=tools, folder=folder, resume=resume)
    yield from metric_problems(
        metrics, listed, metric=file.metric, path=parts[0]
    )
