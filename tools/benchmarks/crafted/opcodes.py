"""Pickles written by hand, and archives around them."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ['Call', 'archive', 'dumps', 'string', 'swap_pickle']


class Call:
    """Object that pickles as a function call; arguments may be calls."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.function, self.args = function, args

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.function, self.args

    def __call__(self) -> None:
        """Be callable, as pickle demands of a call's function."""


def dumps(value: Any, *, protocol: int = 2) -> bytes:
    """Pickle a value."""
    return pickle.dumps(value, protocol=protocol)


def string(text: str) -> bytes:
    """Return the opcode of a string, BINUNICODE."""
    data = text.encode()
    return b'X' + struct.pack('<I', len(data)) + data


def archive(
    path: Path,
    pickled: bytes,
    *,
    donor: Path | None = None,
    deflate: bool = False,
    name: str = 'archive',
) -> None:
    """Write torch's zip format around a pickle.

    Args:
        path: File to write.
        pickled: Contents of ``data.pkl``.
        donor: Archive of torch.save whose tensors are copied.
        deflate: Compress the entries, which torch.save never does.
        name: Root folder in the archive.
    """
    kind = zipfile.ZIP_DEFLATED if deflate else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, 'w', kind, allowZip64=True) as out:
        out.writestr(f'{name}/data.pkl', pickled)
        out.writestr(f'{name}/byteorder', 'little')
        if donor is not None:
            _copy_records(donor, out, name=name)
        out.writestr(f'{name}/version', '3\n')


def _copy_records(donor: Path, out: zipfile.ZipFile, *, name: str) -> None:
    with zipfile.ZipFile(donor) as archive_in:
        for entry in archive_in.namelist():
            folder, _, rest = entry.partition('/')
            if folder and rest.startswith('data/'):
                out.writestr(f'{name}/{rest}', archive_in.read(entry))


def pickle_of(path: Path) -> bytes:
    """Return ``data.pkl`` of an archive of torch.save."""
    with zipfile.ZipFile(path) as content:
        entry = next(n for n in content.namelist() if n.endswith('data.pkl'))
        return content.read(entry)


def swap_pickle(
    change: Callable[[bytes], bytes], donor: Path, path: Path
) -> None:
    """Write an archive with a changed ``data.pkl``."""
    archive(path, change(pickle_of(donor)), donor=donor)


def saved(value: Any, *, protocol: int = 2, legacy: bool = False) -> bytes:
    """Return the bytes that torch.save writes."""
    import torch

    buffer = io.BytesIO()
    torch.save(
        value,
        buffer,
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=not legacy,
    )
    return buffer.getvalue()
