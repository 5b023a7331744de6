"""The reader of all checkpoint files, quantized or float."""

from __future__ import annotations

import mmap
import pickle
import struct
from pathlib import Path
from typing import Any

import torch

from taskptq.export.archive import has_zip_start, read_archive
from taskptq.export.errors import (
    DamagedFileError,
    FileError,
    NotPlainFileError,
    shown,
)
from taskptq.export.plain_calls import ITEM_BYTES
from taskptq.export.plain_pickle import PlainPickle

# Format of torch.save before 1.6: five pickles, then the storages.
LEGACY_START = b'\x80'
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001

READ_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)


def read_file(
    path: str | Path, *, training: bool = False, trust: bool = False
) -> Any:
    """Read a file of torch.save onto the CPU, without judging its contents.

    Every instruction of the file is checked before any is carried out, so
    memory and time stay proportional to its size.

    Args:
        path: Local file.
        training: Also allow the objects of mmengine's training checkpoints
            (numpy arrays, HistoryBuffers).
        trust: If the file holds more than plain data, unpickle everything,
            which can run code from the file.

    Raises:
        FileNotFoundError: If there is no such file.
        NotPlainFileError: If reading it requires ``trust``.
        DamagedFileError: If it is truncated or damaged, not written by
            torch.save, or refers to more data than it has.
    """
    path = Path(path)
    plain = True
    try:
        if has_zip_start(path):
            archive = read_archive(path)
            dry = PlainPickle(training=training, storages=archive.storages)
            dry.run(archive.pickle)
            del archive
        else:
            _check_legacy(path, training=training)
    except NotPlainFileError:
        if not trust:
            raise
        plain = False
    except MemoryError as error:
        raise DamagedFileError('needs more memory than is free') from error
    return _load(path, plain=plain)


def _load(path: Path, *, plain: bool) -> Any:
    try:
        return torch.load(path, map_location='cpu', weights_only=plain)
    except pickle.UnpicklingError as error:
        if plain:
            raise NotPlainFileError(
                'holds objects that torch reads only from trusted files'
            ) from error
        raise DamagedFileError('is damaged (reading it failed)') from error
    except READ_ERRORS as error:
        if isinstance(error, FileError | FileNotFoundError):
            raise
        raise DamagedFileError('is damaged (reading it failed)') from error


def _check_legacy(path: Path, *, training: bool) -> None:
    """Check a file in the format of torch.save before 1.6."""
    with path.open('rb') as file:
        start = file.read(1)
        if not start:
            raise DamagedFileError('is empty')
        if start != LEGACY_START:
            raise DamagedFileError(
                'is not a plain checkpoint (torch.save writes other files)'
            )
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _check_legacy_content(data, training=training)


def _check_legacy_content(data: mmap.mmap, *, training: bool) -> None:
    dry = PlainPickle(training=training, storages=None)
    magic, at = dry.run(data)
    if magic != LEGACY_MAGIC:
        raise DamagedFileError(
            'is not a plain checkpoint (torch.save writes other files)'
        )
    protocol, at = dry.run(data, start=at)
    if protocol != LEGACY_PROTOCOL:
        raise DamagedFileError('is damaged (unknown format)')
    _, at = dry.run(data, start=at)
    _, at = dry.run(data, start=at)
    keys, at = dry.run(data, start=at)
    if type(keys) is not list or sorted(map(str, keys)) != sorted(dry.claims):
        raise DamagedFileError('is damaged (bad storages)')
    for key in keys:
        kind, count = dry.claims[key]
        stored = data[at : at + 8]
        size = count * ITEM_BYTES[kind]
        if stored != count.to_bytes(8, 'little') or len(data) < at + 8 + size:
            raise DamagedFileError(
                f'is damaged or truncated (in storage {shown(key)})'
            )
        at += 8 + size
