"""The zip container of torch.save, checked before any of it is used."""

from __future__ import annotations

import struct
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

from taskptq.export.errors import DamagedFileError, shown

ZIP_MAGIC = b'PK\x03\x04'
END_MAGIC = b'PK\x05\x06'
END64_MAGIC = b'PK\x06\x06'
LOCATOR_MAGIC = b'PK\x06\x07'
END_SIZE, END64_SIZE, LOCATOR_SIZE = 22, 56, 20
NEEDS_ZIP64 = 1 << 32
# General purpose flag bits: encrypted, patched data, strong encryption.
FORBIDDEN_FLAGS = 0x1 | 0x20 | 0x40

MAX_ENTRIES = 100_000
MAX_DIRECTORY_BYTES = 16 << 20
# A million logged values of ten quantities take about 200 MB.
MAX_PICKLE_BYTES = 256 << 20


class Archive(NamedTuple):
    """Contents of a checked archive.

    Attributes:
        pickle: Bytes that torch would unpickle.
        storages: Storage key -> size in bytes.
    """

    pickle: bytes
    storages: dict[str, int]


def has_zip_start(path: Path) -> bool:
    """Return whether torch would treat the file as a zip archive."""
    with path.open('rb') as file:
        return file.read(len(ZIP_MAGIC)) == ZIP_MAGIC


def read_archive(path: Path) -> Archive:
    """Check a zip file written by torch.save and read its pickle.

    torch and zipfile must see the same entries, so files that they could
    read differently (bytes after the end, several directories, names that
    differ only in case) are refused.

    Args:
        path: File that starts like a zip archive.

    Raises:
        DamagedFileError: If it is truncated, altered, or not what torch
            writes (compressed, encrypted, oversized or too many entries).
    """
    size = path.stat().st_size
    try:
        if not zipfile.is_zipfile(path):
            raise DamagedFileError('is truncated (its end is missing)')
        start = _check_end(path, size=size)
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            prefix = _check_entries(entries, start=start, size=size)
            content = archive.read(prefix + 'data.pkl')
            _check_byte_order(archive, prefix)
    except (
        zipfile.BadZipFile,
        struct.error,
        NotImplementedError,
        EOFError,
        KeyError,
        OverflowError,
        RuntimeError,
        ValueError,
    ) as error:
        if isinstance(error, DamagedFileError):
            raise
        raise DamagedFileError('is damaged (bad zip directory)') from error
    data = prefix + 'data/'
    return Archive(
        content,
        {
            entry.filename[len(data) :]: entry.file_size
            for entry in entries
            if entry.filename.startswith(data)
        },
    )


def _check_end(path: Path, *, size: int) -> int:
    """Check the records at the end; return where the directory starts."""
    tail_size = END_SIZE + LOCATOR_SIZE + END64_SIZE
    with path.open('rb') as file:
        file.seek(max(size - tail_size, 0))
        tail = file.read(tail_size).rjust(tail_size, b'\0')
    end64, locator = tail[:END64_SIZE], tail[END64_SIZE:-END_SIZE]
    magic, *disks, count, length, start, comment = struct.unpack(
        '<4s2H2xHLLH', tail[-END_SIZE:]
    )
    if magic != END_MAGIC or comment or any(disks):
        raise DamagedFileError('is damaged (data after the end)')
    if locator[:4] == LOCATOR_MAGIC:
        (where,) = struct.unpack('<8xQ4x', locator)
        if end64[:4] != END64_MAGIC or where != size - tail_size:
            raise DamagedFileError('is damaged (two zip directories)')
        count, length, start = struct.unpack('<32xQQQ', end64)
    if count > MAX_ENTRIES or length > MAX_DIRECTORY_BYTES:
        raise DamagedFileError(
            f'has {count:,} entries in its archive; the limit is '
            f'{MAX_ENTRIES:,}'
        )
    if start + length > size - END_SIZE:
        raise DamagedFileError('is damaged (bad zip directory)')
    return int(start)


def _check_entries(
    entries: list[zipfile.ZipInfo], *, start: int, size: int
) -> str:
    """Check names and sizes; return the folder that holds all entries."""
    if not entries or len(entries) > MAX_ENTRIES:
        raise DamagedFileError(
            f'has {len(entries):,} entries in its archive instead of 1 to '
            f'{MAX_ENTRIES:,}'
        )
    prefix = entries[0].filename.partition('/')[0] + '/'
    names: set[str] = set()
    for entry in entries:
        _check_entry(entry, start=start, size=size)
        if not entry.filename.startswith(prefix):
            raise DamagedFileError('is damaged (two folders in its archive)')
        names.add(entry.filename.casefold())
    if len(names) < len(entries):
        raise DamagedFileError('has duplicate entries in its archive')
    if sum(entry.file_size for entry in entries) > start:
        raise DamagedFileError('has entries larger than the file itself')
    if prefix + 'constants.pkl' in names:
        raise DamagedFileError(
            'is a TorchScript program, not a checkpoint; it was not run'
        )
    pickles = [e for e in entries if e.filename == prefix + 'data.pkl']
    if not pickles:
        raise DamagedFileError(
            'is damaged, or not written by torch.save (it has no data.pkl)'
        )
    if pickles[0].file_size > MAX_PICKLE_BYTES:
        raise DamagedFileError(
            f'has a data.pkl of {pickles[0].file_size:,} bytes; the limit is '
            f'{MAX_PICKLE_BYTES:,}'
        )
    return prefix


def _check_entry(entry: zipfile.ZipInfo, *, start: int, size: int) -> None:
    name = shown(entry.filename)
    if entry.flag_bits & FORBIDDEN_FLAGS:
        raise DamagedFileError(f'has an encrypted entry {name}')
    stored = entry.compress_type == zipfile.ZIP_STORED
    if not stored or entry.compress_size != entry.file_size:
        raise DamagedFileError(
            f'has a compressed entry {name}, which torch.save never writes'
        )
    if entry.header_offset + 30 + entry.file_size > start:
        raise DamagedFileError(f'has an entry {name} larger than the file')
    if size < NEEDS_ZIP64 and entry.extra[:2] == b'\x01\0':
        raise DamagedFileError(f'has an entry {name} with two sizes')


def _check_byte_order(archive: zipfile.ZipFile, prefix: str) -> None:
    name = prefix + 'byteorder'
    if name not in archive.namelist():
        return
    order = archive.read(name)[:16].decode('ascii')
    if order != sys.byteorder:
        raise DamagedFileError(
            f'was written in byte order {shown(order)}, but this machine '
            f'needs {sys.byteorder}'
        )
