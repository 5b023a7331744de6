"""Archives that are truncated, have flipped bits, or hide something."""

from __future__ import annotations

import os
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .case import Case, Good, edited, redigest
from .opcodes import Call, archive, pickle_of, saved, string

__all__ = ['cases']

KIND = 'container'
GIB = 1024**3
MIB = 1024**2


def _cut(share: float) -> Callable[[Good, Path], None]:
    def write(good: Good, path: Path) -> None:
        content = good.path('quantized').read_bytes()
        keep = int(share) if share < 0 else int(len(content) * share)
        path.write_bytes(content[:keep])

    return write


def _flip(find: Callable[[bytes], int]) -> Callable[[Good, Path], None]:
    def write(good: Good, path: Path) -> None:
        content = bytearray(good.path('quantized').read_bytes())
        content[find(bytes(content))] ^= 0x10
        path.write_bytes(bytes(content))

    return write


def _overwrite(
    find: Callable[[bytes], int], new: bytes
) -> Callable[[Good, Path], None]:
    def write(good: Good, path: Path) -> None:
        content = bytearray(good.path('quantized').read_bytes())
        at = find(bytes(content))
        content[at : at + len(new)] = new
        path.write_bytes(bytes(content))

    return write


FLIPS: dict[str, Callable[[bytes], int]] = {
    'magic': lambda c: 1,
    'local-header': lambda c: 8,
    'pickle-start': lambda c: c.index(b'data.pkl') + 80,
    'pickle-key': lambda c: c.index(b'quantizers') + 3,
    'storage-type': lambda c: c.index(b'FloatStorage') + 2,
    'tensor': lambda c: len(c) // 2,
    'directory': lambda c: c.rindex(b'PK\x01\x02') + 2,
    'directory-size': lambda c: c.rindex(b'PK\x01\x02') + 24,
    'directory-offset': lambda c: c.rindex(b'PK\x01\x02') + 43,
    'end-record': lambda c: c.rindex(b'PK\x05\x06') + 17,
}


def _bomb(entry: str, size: int) -> Callable[[Good, Path], None]:
    """Add an entry of deflated zeros, or replace one."""

    def write(good: Good, path: Path) -> None:
        donor = good.path('quantized')
        pickled = pickle_of(donor)
        with zipfile.ZipFile(
            path, 'w', zipfile.ZIP_DEFLATED, compresslevel=1
        ) as out:
            if entry != 'data.pkl':
                out.writestr('archive/data.pkl', pickled)
            out.writestr('archive/version', '3\n')
            out.writestr('archive/byteorder', 'little')
            _copy(donor, out, without=entry)
            zeros = bytes(16 * MIB)
            with out.open(f'archive/{entry}', 'w', force_zip64=True) as file:
                for _ in range(size // len(zeros)):
                    file.write(zeros)

    return write


def _copy(donor: Path, out: zipfile.ZipFile, *, without: str) -> None:
    with zipfile.ZipFile(donor) as content:
        for name in content.namelist():
            rest = name.partition('/')[2]
            if rest.startswith('data/') and rest != without:
                out.writestr(f'archive/{rest}', content.read(name))


def _bomb_tensor(good: Good, path: Path) -> None:
    """Declare the float tensor that the bomb's zeros fill."""
    payload = good.read('quantized')
    payload['float']['bomb'] = torch.zeros(1)
    path.write_bytes(saved(payload))
    pickled = pickle_of(path)
    with zipfile.ZipFile(path) as content:
        names = [n.partition('/')[2] for n in content.namelist()]
    last = sorted(
        (n for n in names if n.startswith('data/')), key=lambda n: int(n[5:])
    )[-1]
    donor = path.with_suffix('.donor')
    path.rename(donor)
    count = 3 * GIB // 4
    pickled = _declare(pickled, count)
    with zipfile.ZipFile(
        path, 'w', zipfile.ZIP_DEFLATED, compresslevel=1
    ) as out:
        out.writestr('archive/data.pkl', pickled)
        out.writestr('archive/version', '3\n')
        out.writestr('archive/byteorder', 'little')
        _copy(donor, out, without=last)
        with out.open(f'archive/{last}', 'w', force_zip64=True) as file:
            zeros = bytes(16 * MIB)
            for _ in range(3 * GIB // len(zeros)):
                file.write(zeros)
    donor.unlink()


def _declare(pickled: bytes, count: int) -> bytes:
    """Change the length that the last pickled storage declares.

    Args:
        pickled: ``data.pkl``; its last storage has 1 to 255 elements.
        count: Elements that it declares.
    """
    # ... its count as BININT1, the end of a tuple, its memo slot, BINPERSID.
    *_, last = re.finditer(rb'K(.)t(q.|r.{4})Q', pickled, re.DOTALL)
    return (
        pickled[: last.start()]
        + b'J'
        + struct.pack('<i', count)
        + pickled[last.start() + 2 :]
    )


def _deflated(good: Good, path: Path) -> None:
    donor = good.path('quantized')
    archive(path, pickle_of(donor), donor=donor, deflate=True)


def _overlapping(good: Good, path: Path) -> None:
    """Let 4,000 entries of the directory share one record of 1 MiB."""
    with zipfile.ZipFile(path, 'w') as out:
        out.writestr('archive/data.pkl', pickle_of(good.path('quantized')))
        out.writestr('archive/version', '3\n')
        out.writestr('archive/data/0', bytes(MIB))
        shared = out.getinfo('archive/data/0')
        for i in range(1, 4000):
            entry = zipfile.ZipInfo(f'archive/data/{i}')
            entry.compress_size = entry.file_size = shared.file_size
            entry.CRC, entry.header_offset = shared.CRC, shared.header_offset
            out.filelist.append(entry)
            out.NameToInfo[entry.filename] = entry


def _twice(good: Good, path: Path) -> None:
    """Two entries named data.pkl: a good one, and one that runs code."""
    donor = good.path('quantized')
    with zipfile.ZipFile(path, 'w') as out:
        out.writestr('archive/data.pkl', pickle_of(donor))
        out.writestr('archive/version', '3\n')
        out.writestr('archive/byteorder', 'little')
        _copy(donor, out, without='')
        out.writestr(
            'archive/data.pkl', pickle.dumps(Call(os.system, good.command), 2)
        )


def _entry(name: str, data: bytes) -> Callable[[Good, Path], None]:
    def write(good: Good, path: Path) -> None:
        donor = good.path('quantized')
        archive(path, pickle_of(donor), donor=donor)
        with zipfile.ZipFile(path, 'a') as out:
            out.writestr(name, data)

    return write


def _pickle(make: Callable[[], bytes]) -> Callable[[Good, Path], None]:
    def write(good: Good, path: Path) -> None:
        archive(path, make(), donor=good.path('float'))

    return write


def _numel(count: int) -> Callable[[Good, Path], None]:
    """Declare a storage larger than its record."""

    def write(good: Good, path: Path) -> None:
        payload = good.read('quantized')
        payload['float']['backbone.stray'] = torch.zeros(3)
        redigest(payload)
        path.write_bytes(saved(payload))
        pickled = _declare(pickle_of(path), count)
        donor = path.with_suffix('.donor')
        path.rename(donor)
        archive(path, pickled, donor=donor)
        donor.unlink()

    return write


def _text(content: bytes) -> Callable[[Good, Path], None]:
    def write(good: Good, path: Path) -> None:
        path.write_bytes(content)

    return write


def _prefixed(good: Good, path: Path) -> None:
    path.write_bytes(
        b'#!/bin/sh\nexit\n' + good.path('quantized').read_bytes()
    )


def _deep(depth: int) -> bytes:
    return b'\x80\x02' + b']' * depth + b'a' * (depth - 1) + b'.'


PICKLES: dict[str, tuple[str, Callable[[], bytes]]] = {
    'bytearray': (
        'bytearray(10**10) takes 10 GB',
        lambda: (
            b'\x80\x02c__builtin__\nbytearray\n'
            + b'\x8a\x05\x00\xe4\x0bT\x02'
            + b'\x85R.'
        ),
    ),
    'lists': (
        '96 MiB of opcodes make 100 million lists',
        lambda: b'\x80\x02' + b']0' * (48 * MIB) + b'].',
    ),
    'kept-lists': (
        '64 MiB of opcodes keep 64 million lists',
        lambda: b'\x80\x02(' + b']' * (64 * MIB) + b't.',
    ),
    'memo-index': (
        'a memo slot of 2**31 - 1 takes 16 GB',
        lambda: b'\x80\x02}r\xff\xff\xff\x7f.',
    ),
    'frame': (
        'a frame of 2**62 bytes',
        lambda: b'\x80\x04\x95' + struct.pack('<Q', 2**62) + b'}.',
    ),
    'long-string': (
        'a string that declares 2**62 bytes',
        lambda: b'\x80\x04\x8d' + struct.pack('<Q', 2**62) + b'a.',
    ),
    'deep': ('lists 200,000 deep', lambda: _deep(200_000)),
    'big-integer': (
        'an integer of 16 MiB, slow to print',
        lambda: (
            b'\x80\x02}'
            + string('state_dict')
            + b'\x8b'
            + struct.pack('<i', 16 * MIB)
            + b'\x7f' * (16 * MIB)
            + b's.'
        ),
    ),
    'huge': (
        'data.pkl of 512 MiB holds one string',
        lambda: (
            b'\x80\x02}'
            + string('meta')
            + b'X'
            + struct.pack('<I', 512 * MIB)
            + b'a' * (512 * MIB)
            + b's.'
        ),
    ),
}


def _legacy_numel(good: Good, path: Path) -> None:
    """Legacy format whose storage declares 40 GB."""
    payload = {'state_dict': {'w': torch.zeros(3)}}
    content = saved(payload, legacy=True)
    at = content.index(string('cpu'))
    head, tail = content[:at], content[at:]
    where = tail.index(b'K\x03')
    path.write_bytes(
        head
        + tail[:where]
        + b'\x8a\x05'
        + (10**10).to_bytes(5, 'little')
        + tail[where + 2 :]
    )


def _case(
    name: str,
    effect: str,
    write: Any,
    *,
    expect: str = 'refused',
    source: str = 'quantized',
) -> Case:
    return Case(
        name=f'container-{name}',
        kind=KIND,
        effect=effect,
        write=write,
        expect=expect,
        source=source,
    )


def _bombs() -> list[Case]:
    return [
        _case(
            'bomb-entry',
            'an unused 3 MB entry takes 3 GiB',
            _bomb('extra', 3 * GIB),
        ),
        _case(
            'bomb-pickle',
            'data.pkl of 3 MB takes 3 GiB',
            _bomb('data.pkl', 3 * GIB),
        ),
        _case('bomb-tensor', 'a tensor of 3 MB takes 3 GiB', _bomb_tensor),
        _case(
            'overlapping', '4,000 records share the same bytes', _overlapping
        ),
        _case(
            'deflated',
            'a good file with compressed entries',
            _deflated,
            expect='either',
        ),
    ]


def cases() -> list[Case]:
    """List them."""
    dirsize = b'\xff\xff\xff\x7f'
    return [
        *(
            _case(f'cut-{label}', 'ends early', _cut(share))
            for label, share in (
                ('all', 0.0),
                ('tenth', 0.1),
                ('half', 0.5),
                ('most', 0.99),
                ('last-byte', -1),
            )
        ),
        # Some bits mean nothing; the digest covers all others.
        *(
            _case(
                f'flip-{n}',
                'one bit is flipped',
                _flip(find),
                expect='refused'
                if n in ('magic', 'tensor', 'pickle-key')
                else 'either',
            )
            for n, find in FLIPS.items()
        ),
        *_bombs(),
        _case('twice', 'a second data.pkl runs code', _twice),
        _case(
            'entry-outside',
            'an entry points outside of the archive',
            _entry('../../outside', b'x'),
            expect='either',
        ),
        _case(
            'entry-code',
            'TorchScript code lies in the archive',
            _entry('archive/code/a.py', b'raise'),
            expect='either',
        ),
        _case(
            'constants',
            'TorchScript constants lie in the archive',
            _entry('archive/constants.pkl', b'cos\nsystem\n.'),
        ),
        _case(
            'directory-count',
            'the directory declares 2 GiB of itself',
            _overwrite(lambda c: c.rindex(b'PK\x05\x06') + 12, dirsize),
            expect='either',
        ),
        _case('prefixed', 'a script in front of the archive', _prefixed),
        *(
            _case(f'pickle-{n}', effect, _pickle(make), source='float')
            for n, (effect, make) in PICKLES.items()
        ),
        _case(
            'storage-beyond-record',
            'a storage of 8 GB in 12 bytes',
            _numel(2**31 - 1),
        ),
        _case(
            'storage-just-beyond',
            'a storage of 4 KiB in 12 bytes',
            _numel(1024),
        ),
        _case(
            'legacy-numel',
            'legacy format declares 40 GB',
            _legacy_numel,
            source='float',
        ),
        _case('html', 'a web page', _text(b'<html>not found</html>\n')),
        _case(
            'lfs',
            'a pointer of Git LFS',
            _text(b'version https://git-lfs.github.com/spec/v1\n'),
        ),
        _case(
            'version-text',
            'a version record that is not a number',
            edited_version,
        ),
    ]


def edited_version(good: Good, path: Path) -> None:
    """Write an archive whose version record is text."""
    edited(lambda payload: None)(good, path)
    content = path.read_bytes()
    path.write_bytes(
        content.replace(b'3\n', b'x\n', 1) if b'3\n' in content else content
    )
