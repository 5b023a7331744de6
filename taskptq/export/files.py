"""Quantized checkpoints on disk: written atomically, read without code."""
from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from taskptq.export.schema import QuantizedCheckpointError, verify

ZIP_MAGIC = b'PK\x03\x04'


def save(payload: Mapping[str, Any], path: str | Path) -> None:
    """Write a payload; the file is complete or not there at all.

    Args:
        payload: From :func:`taskptq.export.pack_model`.
        path: Where to; replaced if it exists, folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.{path.name}.{os.getpid()}.partial')
    try:
        with partial.open('wb') as file:
            torch.save(dict(payload), file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load(path: str | Path) -> dict[str, Any]:
    """Read and verify a payload; runs nothing that the file brings along.

    Args:
        path: File that :func:`save` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        QuantizedCheckpointError: If the file is truncated or damaged, needs
            unpickling of other objects, isn't ours, has another schema, or
            doesn't match its digest.
    """
    path = Path(path)
    _check_container(path)
    try:
        payload = torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        raise QuantizedCheckpointError(
            f'{path} holds objects other than tensors and plain types, which '
            'a quantized checkpoint never does; it was not loaded, because '
            'that would run code from the file'
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise QuantizedCheckpointError(
            f'{path} is damaged (reading it failed): fetch or write it again'
        ) from error
    try:
        verify(payload)
    except QuantizedCheckpointError as error:
        raise QuantizedCheckpointError(f'{path}: {error}') from error
    return dict(payload)


def _check_container(path: Path) -> None:
    """Tell a truncated file from one of another format, by its ends."""
    with path.open('rb') as file:
        start = file.read(len(ZIP_MAGIC))
    if zipfile.is_zipfile(path):
        return
    if start == ZIP_MAGIC[: len(start)]:
        raise QuantizedCheckpointError(
            f'{path} is truncated (its end is missing): fetch or write it '
            'again'
        )
    raise QuantizedCheckpointError(
        f'{path} is not a quantized checkpoint of taskptq (not in the zip '
        'format of torch.save): pass the file that quantization wrote'
    )
