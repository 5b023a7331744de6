"""Quantized checkpoints on disk: written atomically, read without code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from taskptq.core.atomic import write_atomically
from taskptq.export.archive import ZIP_MAGIC
from taskptq.export.container import to_file
from taskptq.export.errors import DamagedFileError, NotPlainFileError
from taskptq.export.reader import read_file
from taskptq.export.schema import OLD_SCHEMA, QuantizedCheckpointError
from taskptq.export.verification import VerifiedPayload, verify


def save(
    payload: Mapping[str, Any], path: str | Path, *, codec: str = 'dense'
) -> None:
    """Write a payload; the file is complete or absent.

    Args:
        payload: From :func:`taskptq.export.pack_model` or :func:`load`.
        path: Target; an existing file is replaced, folders are created.
        codec: How sections are coded: ``dense``, ``auto`` (the shortest that
            needs no extra package to be read), ``rans``, ``zstd`` or
            ``constriction``. The payload that is read is the same.

    Raises:
        QuantizedCheckpointError: If the payload is malformed.
        ValueError: If there is no such codec, or its package is missing.
        DiskFullError: If the disk is full; states the size needed in bytes.
    """
    content = dict(payload)
    if payload.get('taskptq', {}).get('schema') != OLD_SCHEMA:
        content = to_file(payload, codec=codec)
    write_atomically(path, lambda file: torch.save(content, file))


def load(path: str | Path) -> VerifiedPayload:
    """Read and verify a payload without running code from the file.

    Args:
        path: File that :func:`save` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        QuantizedCheckpointError: If the file is truncated or damaged, holds
            other pickled objects, isn't ours, has an unknown schema, doesn't
            match its digest, or holds impossible numbers.
    """
    path = Path(path)
    _refuse_other_formats(path)
    try:
        payload = read_file(path)
    except NotPlainFileError as error:
        raise QuantizedCheckpointError(
            f'{path} holds objects other than tensors and plain types, which '
            f'a quantized checkpoint never does (it {error}); it was not '
            'loaded, because loading could run code from the file'
        ) from error
    except DamagedFileError as error:
        raise QuantizedCheckpointError(
            f'{path} {error}: fetch or write it again'
        ) from error
    return verify_file(payload, path)


def verify_file(payload: Any, path: str | Path) -> VerifiedPayload:
    """Verify a payload read from a file; errors start with its path.

    Raises:
        QuantizedCheckpointError: See :func:`taskptq.export.verify`.
    """
    try:
        return verify(payload)
    except QuantizedCheckpointError as error:
        raise QuantizedCheckpointError(f'{path}: {error}') from error


def _refuse_other_formats(path: Path) -> None:
    with path.open('rb') as file:
        start = file.read(len(ZIP_MAGIC))
    if start != ZIP_MAGIC[: len(start)]:
        raise QuantizedCheckpointError(
            f'{path} is not a quantized checkpoint of taskptq (not in the '
            'zip format of torch.save): pass the file that quantization wrote'
        )
    if len(start) < len(ZIP_MAGIC):
        raise QuantizedCheckpointError(
            f'{path} is truncated (its end is missing): fetch or write it '
            'again'
        )
