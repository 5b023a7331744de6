"""What an exported file says of itself, beside its graph."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from taskptq.engine.raw_outputs import (
    MAIN,
)
from taskptq.export.errors import shown
from taskptq.export.openvino_session import open_session
from taskptq.export.runtime import OnnxFile, OnnxFileError, Session, read_onnx

__all__ = ['OnnxMetadata', 'open_parts', 'part_path', 'read_metadata']

PREFIX = 'taskptq.'


@dataclass(frozen=True, kw_only=True)
class OnnxMetadata:
    """Metadata of one file.

    Args:
        part: Name of its part of the network.
        parts: Names of all parts, each of which has a file.
        export: Identifies the export, so that files are not mixed.
        model: Class of the model.
        config: Name of the config, without suffix; or None.
        recipe: What the recipe is called; ``float`` for a float model.
        digest: Digest of the quantized file, or SHA-256 of the float one.
        target: Runtime that it is for.
        input_size: Height and width of the images; None if they are free.
        classes: Names of the classes, or None.
        preprocessing: See ``onnx_preprocess``; None if it takes the host.
        decoding: See ``onnx_decode``; None if it takes the host.
    """

    part: str = MAIN
    parts: list[str]
    export: str
    model: str
    config: str | None = None
    recipe: str | None = None
    digest: str
    target: str
    input_size: list[int] | None = None
    classes: list[str] | None = None
    preprocessing: list[dict[str, Any]] | None = None
    decoding: dict[str, Any] | None = None

    def to_texts(self) -> dict[str, str]:
        """Return the entries of ``metadata_props``, JSON each."""
        return {
            f'{PREFIX}{item.name}': json.dumps(getattr(self, item.name))
            for item in fields(self)
        }


# Types of a field's value, None apart.
TYPES: dict[str, type] = {
    'part': str,
    'parts': list,
    'export': str,
    'model': str,
    'config': str,
    'recipe': str,
    'digest': str,
    'target': str,
    'input_size': list,
    'classes': list,
    'preprocessing': list,
    'decoding': dict,
}
NEEDED = ('part', 'parts', 'export', 'model', 'digest', 'target')


def read_metadata(file: OnnxFile) -> OnnxMetadata:
    """Read a file's metadata.

    Raises:
        OnnxFileError: If it is not a file of our export, or damaged.
    """
    found = {
        key.removeprefix(PREFIX): _value(file, key, text)
        for key, text in file.metadata.items()
        if key.startswith(PREFIX)
    }
    if not found:
        raise OnnxFileError(
            f'{file.path} was not written by taskptq export, so that the '
            'place of its outputs in a model is unknown: export the model '
            'with taskptq export'
        )
    for name, kind in TYPES.items():
        value = found.get(name)
        wrong = value is not None and not isinstance(value, kind)
        if wrong or (value is None and name in NEEDED):
            raise OnnxFileError(
                f'{file.path}: its entry {PREFIX}{name} is {shown(value)}: '
                'export it again'
            )
    texts = [*found['parts'], *(found.get('classes') or [])]
    if not all(isinstance(text, str) for text in texts):
        raise OnnxFileError(
            f'{file.path}: its parts and classes must be names: export it '
            'again'
        )
    return OnnxMetadata(**{name: found.get(name) for name in TYPES})


def _value(file: OnnxFile, key: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise OnnxFileError(
            f'{file.path}: its entry {shown(key)} is not JSON: export it again'
        ) from error


def part_path(path: str | Path, part: str) -> Path:
    """Return the file of a part: the main one has the name asked for.

    >>> part_path('a/model.onnx', 'roi_head.bbox_head').as_posix()
    'a/model.roi_head.bbox_head.onnx'
    """
    path = Path(path)
    return path if part == MAIN else path.with_name(f'{path.stem}.{part}.onnx')


def open_parts(
    path: str | Path,
    *,
    runtime: str | None = None,
    threads: int | None = None,
) -> tuple[OnnxMetadata, dict[str, Session]]:
    """Open all files of an export.

    Args:
        path: File of the main part.
        runtime: ``onnxruntime`` or ``openvino``; None is the first.
        threads: Threads of the runtime; None takes those of torch.

    Returns:
        Metadata of the main part, and a session for each part.

    Raises:
        FileNotFoundError: If a file is missing.
        OnnxFileError: If one cannot be used, or is of another export.
        SettingError: If there is no such runtime.
    """
    files = {MAIN: read_onnx(path)}
    meta = read_metadata(files[MAIN])
    if meta.part != MAIN:
        raise OnnxFileError(
            f'{path} is only the part {meta.part} of an export: give the '
            'file without this name in it'
        )
    for part in meta.parts:
        if part == MAIN:
            continue
        if Path(part).name != part:
            raise OnnxFileError(
                f'{path} names the part {shown(part)}, which does not name a '
                'layer: export it again'
            )
        files[part] = read_onnx(part_path(path, part))
        other = read_metadata(files[part])
        if (other.export, other.part) != (meta.export, part):
            raise OnnxFileError(
                f'{files[part].path} is not of the same export as {path}: '
                'copy all files of one export, or export again'
            )
    return meta, {
        part: open_session(file, runtime=runtime, threads=threads)
        for part, file in files.items()
    }


def settings_of(meta: OnnxMetadata) -> Mapping[str, Any]:
    """Return what a reader wants to know of an export, plain."""
    size = meta.input_size
    return {
        'model': meta.model,
        'config': meta.config,
        'recipe': meta.recipe,
        'target': meta.target,
        'input': 'any size' if size is None else 'x'.join(map(str, size)),
        'parts': meta.parts,
    }
