"""The zip container: what torch.save never writes is refused."""

import struct
import tarfile
import zipfile

import pytest
import torch
from file_refusals import PLAIN, refused
from torch import nn

from taskptq.export.archive import read_archive
from taskptq.export.errors import (
    DamagedFileError,
)


def with_zip(path, entries, **kwargs):
    with zipfile.ZipFile(path, 'w', **kwargs) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return path


def test_compressed_entries_are_refused(craft):
    path = craft(PLAIN, compression=zipfile.ZIP_DEFLATED)
    refused(path, 'compressed entry', DamagedFileError)


def test_zip_bomb_is_refused(tmp_path):
    path = with_zip(
        tmp_path / 'b.pth',
        [('a/data.pkl', b'N.'), ('a/data/0', bytes(100 << 20))],
        compression=zipfile.ZIP_DEFLATED,
    )
    refused(path, 'compressed entry', DamagedFileError)


def test_understated_compression_is_refused(tmp_path):
    path = with_zip(
        tmp_path / 'b.pth', [('a/data.pkl', b'N.'), ('a/data/0', bytes(99))]
    )
    content = bytearray(path.read_bytes())
    directory = content.rindex(b'PK\x01\x02')
    content[directory + 24 : directory + 28] = struct.pack('<I', 1 << 30)
    path.write_bytes(content)
    refused(path, 'entry', DamagedFileError)


def test_duplicate_names_are_refused(tmp_path):
    with pytest.warns(UserWarning, match='Duplicate'):
        path = with_zip(
            tmp_path / 'b.pth', [('a/data.pkl', b'N.'), ('a/data.pkl', b'K.')]
        )
    refused(path, 'duplicate entries', DamagedFileError)
    path = with_zip(path, [('a/data.pkl', b'N.'), ('a/DATA.pkl', b'K.')])
    refused(path, 'duplicate entries', DamagedFileError)
    path = with_zip(path, [('a/data.pkl', b'N.'), ('b/data.pkl', b'K.')])
    refused(path, 'two folders', DamagedFileError)


def test_encrypted_entries_are_refused(craft):
    path = craft(PLAIN)
    content = bytearray(path.read_bytes())
    content[content.index(b'PK\x01\x02') + 8] |= 1
    path.write_bytes(content)
    refused(path, 'encrypted', DamagedFileError)


@pytest.mark.parametrize('tail', [b'x', b'PK\x05\x06' + bytes(18)])
def test_bytes_after_the_end_are_refused(craft, tail):
    path = craft(PLAIN)
    path.write_bytes(path.read_bytes() + tail)
    refused(path, 'truncated|damaged|entries', DamagedFileError)


def test_many_entries_are_refused(tmp_path):
    path = with_zip(
        tmp_path / 'b.pth', [(f'a/{i}', b'') for i in range(100_001)]
    )
    refused(path, 'entries in its archive', DamagedFileError)


def test_torchscript_and_tar_are_refused(tmp_path, craft):
    path = tmp_path / 's.pth'
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)
    refused(path, 'compressed|TorchScript', DamagedFileError)
    refused(path, 'compressed|TorchScript', DamagedFileError, trust=True)
    with tarfile.open(tmp_path / 't.pth', 'w') as archive:
        archive.add(path, 'storages')
    refused(tmp_path / 't.pth', 'not a plain checkpoint', DamagedFileError)
    path = craft(PLAIN, entries={'constants.pkl': b'N.'})
    refused(path, 'TorchScript', DamagedFileError)


def test_other_byte_order_is_refused(craft, monkeypatch):
    path = craft(PLAIN)
    monkeypatch.setattr('sys.byteorder', 'big')
    refused(path, 'byte order', DamagedFileError)


def test_archive_reads_what_torch_reads(tmp_path):
    path = tmp_path / 'a.pth'
    torch.save(PLAIN, path)
    reader = torch._C.PyTorchFileReader(str(path))
    archive = read_archive(path)
    assert archive.pickle == reader.get_record('data.pkl')
    assert archive.storages == {'0': 48}
