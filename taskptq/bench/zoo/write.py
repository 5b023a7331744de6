"""Make what the zoo lists, and record what was measured of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from taskptq.bench.zoo.check import copied
from taskptq.bench.zoo.records import MAX_BYTES, publish, published_name
from taskptq.bench.zoo.source import ZooFile
from taskptq.bench.zoo.work import (
    Tools,
    build,
    command_line,
    digest,
    evaluate,
    export,
)
from taskptq.export.checkpoint import QuantizedCheckpointError

# How the exporter and the host say that they cannot; the first is a command's.
REFUSALS = (SystemExit, ValueError, QuantizedCheckpointError)


def write_file(
    file: ZooFile,
    old: Mapping[str, Any] | None,
    *,
    tools: Tools,
    folder: Path,
    facts: Mapping[str, Any],
    resume: bool = False,
) -> dict[str, Any]:
    """Make, evaluate and publish a file.

    Args:
        file: What the zoo lists.
        old: The record so far; files that it names are replaced.
        tools: The commands.
        folder: Work folder of this file.
        facts: ``commit`` and ``environment``.
        resume: Go on with an interrupted run.

    Returns:
        Its record, see ``records.py``.
    """
    made = build(file, tools=tools, folder=folder, resume=resume)
    metrics = evaluate(file, made, tools=tools, folder=folder, resume=resume)
    entry = place(
        made,
        file,
        parts=[made],
        old=[old] if old else [],
        allowed=file.commit,
    )
    record = {
        **file.settings(),
        **entry['parts'][0],
        'committed': entry['committed'],
        'value': metrics[file.metric],
        'metrics': metrics,
        'command': command_line(file),
        **facts,
    }
    if file.onnx:
        record['onnx'] = write_onnx(
            file,
            made,
            old=old_parts(old),
            tools=tools,
            folder=folder,
            resume=resume,
        )
    return record


def write_export(
    file: ZooFile,
    old: Mapping[str, Any],
    *,
    tools: Tools,
    folder: Path,
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """Export a file that lies in the repository, and leave it as it is.

    Args:
        file: What the zoo lists.
        old: The record so far.
        tools: The commands.
        folder: Work folder of this file.
        facts: ``commit`` and ``environment`` of the export.

    Returns:
        The new record.
    """
    onnx = write_onnx(
        file,
        copied([Path(old['file'])], folder=folder),
        old=old_parts(old),
        tools=tools,
        folder=folder,
        resume=False,
    )
    return {**old, 'onnx': {**onnx, **facts}}


def old_parts(old: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    """Return the parts of the export that a record lists."""
    parts: list[Mapping[str, Any]] = ((old or {}).get('onnx') or {}).get(
        'parts', []
    )
    return parts


def write_onnx(
    file: ZooFile,
    made: Path,
    *,
    old: Sequence[Mapping[str, Any]],
    tools: Tools,
    folder: Path,
    resume: bool,
) -> dict[str, Any]:
    """Export a file, evaluate the export and publish it.

    Args:
        file: What the zoo lists.
        made: The quantized file.
        old: Parts that are replaced.
        tools: The commands.
        folder: Work folder of this file.
        resume: Go on with an interrupted run.

    Returns:
        The record's ``onnx``; where exporter or host refuse, why.
    """
    settings = file.export_settings()
    try:
        parts = export(file, made, tools=tools, folder=folder, resume=resume)
    except REFUSALS as error:
        return {'refused': str(error), **settings}
    placed = place(
        parts[0], file, parts=parts, old=old, allowed=file.commit_onnx
    )
    entry = {**placed, **settings}
    try:
        metrics = evaluate(
            file, parts[0], tools=tools, folder=folder, resume=resume
        )
    except REFUSALS as error:
        return {**entry, 'value': None, 'not_evaluated': str(error)}
    return {**entry, 'value': metrics[file.metric], 'metrics': metrics}


def place(
    main: Path,
    file: ZooFile,
    *,
    parts: Sequence[Path],
    old: Sequence[Mapping[str, Any]],
    allowed: bool,
) -> dict[str, Any]:
    """Publish files that are small enough to lie in the repository.

    Args:
        main: The file whose SHA-256 is in all names.
        file: What the zoo lists.
        parts: All files, ``main`` first.
        old: Records of files that are replaced.
        allowed: Whether they may lie in the repository.

    Returns:
        ``committed``, and ``parts`` with ``file`` (where it lies, or would
        lie), ``sha256`` and ``bytes``.
    """
    sha256 = digest(main)
    small = all(part.stat().st_size <= MAX_BYTES for part in parts)
    committed = allowed and small
    entries = []
    for part in parts:
        suffix = part.name.removeprefix(main.stem)
        name = published_name(file.name, sha256=sha256, suffix=suffix)
        target = file.folder / name
        entries.append(
            {
                'file': target.as_posix(),
                'sha256': digest(part),
                'bytes': part.stat().st_size,
            }
        )
    fresh = parts if committed else []
    _replace(old, fresh, [Path(entry['file']) for entry in entries])
    return {'committed': committed, 'parts': entries}


def _replace(
    old: Sequence[Mapping[str, Any]],
    parts: Sequence[Path],
    targets: Sequence[Path],
) -> None:
    """Publish parts, and remove the old ones that they do not replace."""
    for entry in old:
        path = Path(entry['file'])
        if not parts or path not in targets:
            path.unlink(missing_ok=True)
    for part, target in zip(parts, targets, strict=False):
        publish(part, target)
