"""Files of strangers: nothing they ask for is done before it is checked."""

import collections
import io
import pickle
import resource
import struct
import tarfile
import time
import zipfile

import numpy as np
import pytest
import torch
from torch import nn

from taskptq.export.archive import read_archive
from taskptq.export.errors import (
    DamagedFileError,
    FileError,
    NotPlainFileError,
)
from taskptq.export.reader import read_file

PLAIN = {'state_dict': {'w': torch.arange(12.0).view(3, 4)}, 'epoch': 3}


def refused(path, match, error=FileError, **kwargs):
    start = time.monotonic()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(error, match=match) as caught:
        read_file(path, **kwargs)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert '\n' not in str(caught.value)
    assert len(str(caught.value)) < 300
    assert grown < 600 << 10  # KiB
    assert time.monotonic() - start < 30


@pytest.mark.parametrize('zipped', [True, False])
def test_plain_files_are_read(tmp_path, zipped):
    path = tmp_path / 'a.pth'
    base = torch.arange(10.0)
    content = {
        'state_dict': nn.BatchNorm2d(3).state_dict(),
        'parameter': nn.Parameter(torch.ones(2)),
        'views': [base, base[2:5], base.view(5, 2).t(), base.expand(2, 10)],
        'empty': [torch.empty(0), torch.empty(0, 3), torch.tensor(3)],
        'types': [
            torch.ones(2, dtype=t)
            for t in (
                torch.half,
                torch.bfloat16,
                torch.int8,
                torch.bool,
                torch.complex64,
                torch.int64,
            )
        ],
        'plain': [None, True, 1, 2**40, -5, 0.5, 'text', ('a', (), [1])],
        'size': torch.Size([3, 4]),
        'dtype': torch.float32,
        1: {2.5: 'x', None: 'y'},
    }
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    expected = torch.load(path, weights_only=True)
    found = read_file(path)
    assert list(found) == list(content)
    assert repr(found) == repr(expected)


def test_training_state_is_read_only_where_asked(tmp_path):
    from mmengine.logging import HistoryBuffer

    from taskptq.registry import allow_history_buffers

    allow_history_buffers()
    path = tmp_path / 'a.pth'
    model = nn.Linear(3, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    history = HistoryBuffer(list(range(30_000)), [1] * 30_000)
    torch.save(
        {
            'optimizer': optimizer.state_dict(),
            'message_hub': {'loss': history},
            'param_schedulers': [{'milestones': collections.Counter([8, 11])}],
            'meta': {'iter': np.int64(3), 'lr': np.float32(0.1)},
        },
        path,
    )
    found = read_file(path, training=True)
    assert found['message_hub']['loss'].current() == 29_999
    assert found['meta']['iter'] == 3
    assert found['param_schedulers'][0]['milestones'][8] == 1
    refused(path, 'asks for', NotPlainFileError)


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
        [('a/data.pkl', b'N.'), ('a/data/0', bytes(800 << 20))],
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


def pickled(instructions):
    return b'\x80\x02' + instructions + b'.'


def by_call(function, *args):
    class Call:
        def __reduce__(self):
            return function, args

    return pickle.dumps({'state_dict': {'w': Call()}}, protocol=2)


RAN = []


@pytest.mark.parametrize(
    'function',
    [
        RAN.append,
        bytearray,
        set,
        eval,
        getattr,
        print,
        np.zeros,
        np.ndarray,
        torch.zeros,
        torch._utils._rebuild_sparse_tensor,
        torch._utils._rebuild_meta_tensor_no_storage,
        torch._utils._rebuild_wrapper_subclass,
        torch._utils._rebuild_parameter_with_state,
        torch._utils._rebuild_qtensor,
        torch._tensor._rebuild_from_type_v2,
        torch.Tensor,
        torch.FloatTensor,
        complex,
    ],
    ids=lambda function: function.__qualname__,
)
@pytest.mark.parametrize('training', [True, False])
def test_other_calls_are_refused(craft, function, training):
    path = craft(PLAIN, pickled=by_call(function, 10**10))
    refused(path, 'asks for|calls', NotPlainFileError, training=training)
    assert not RAN


def test_trust_runs_what_is_not_plain(craft):
    path = craft(PLAIN, pickled=by_call(bytearray, 3))
    assert read_file(path, trust=True)['state_dict']['w'] == bytearray(3)


@pytest.mark.parametrize(
    'make',
    [
        lambda: by_call(
            np.zeros(1).__reduce__()[0], np.ndarray, (10**10,), b'b'
        ),
        lambda: by_call(np.zeros(1).__reduce__()[0], np.ndarray, (0,), 'O'),
        lambda: by_call(np.dtype, 'V1000000000'),
        lambda: by_call(collections.Counter, range(3)),
        lambda: by_call(collections.OrderedDict, [(1, 2)]),
        lambda: pickled(b'cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85R'),
        lambda: pickled(b'cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85\x81'),
        lambda: pickled(b'c_codecs\nencode\nX\x01\0\0\0ax\x04zlib\x86R'),
        lambda: pickled(
            b'ccollections\nOrderedDict\n)R}X\x05\0\0\0itemsK\x01sb'
        ),
        lambda: pickled(
            b'cmmengine.logging.history_buffer\nHistoryBuffer\n)R'
        ),
        lambda: pickled(
            b'cmmengine.logging.history_buffer\nHistoryBuffer\n)\x81'
            b'}X\x04\0\0\0meanK\x01sb'
        ),
    ],
)
def test_allowed_names_have_fixed_arguments(craft, make):
    path = craft(PLAIN, pickled=make())
    refused(path, 'calls|makes|gives|asks|damaged', training=True)


def rebuild(data, *, size, stride):
    """Change the size and stride of the one (3, 4) tensor in a pickle."""
    old = b'K\x03K\x04\x86q\x08K\x04K\x01\x86'
    assert data.count(old) == 1
    new = b''
    for values in (size, stride):
        longs = b''.join(
            b'\x8a\x08' + v.to_bytes(8, 'little', signed=True) for v in values
        )
        new += longs + b'\x86' + (b'q\x08' if values is size else b'')
    return data.replace(old, new)


@pytest.mark.parametrize(
    ('size', 'stride'),
    [
        ((3, 5), (4, 1)),
        ((10**5, 10**5), (10**5, 1)),
        ((2**62, 2**62), (1, 1)),
        ((-3, 4), (4, 1)),
        ((3, 4), (-4, 1)),
        ((2, 2), (10**18, 1)),
    ],
)
def test_tensors_beyond_their_storage_are_refused(craft, size, stride):
    path = craft(
        {'w': torch.arange(12.0).view(3, 4)},
        pickled=lambda data: rebuild(data, size=size, stride=stride),
    )
    refused(path, 'tensor of shape|calls')


def test_storage_that_claims_more_than_the_file_has(craft):
    path = craft(
        {'w': torch.arange(12.0)},
        pickled=lambda data: data.replace(b'K\x0c', b'K\x0d'),
    )
    refused(path, 'bytes of storage', DamagedFileError)


@pytest.mark.parametrize(
    'part',
    [
        b'N' * 1_500_000,
        b'(' * 1_500_000,
        b']' * 1_500_000,
        b'}q\0('
        + b''.join(b'X\x07\0\0\0%07dK\x01' % i for i in range(600_000))
        + b'u',
    ],
    ids=['nones', 'marks', 'lists', 'keys'],
)
def test_floods_are_refused(craft, part):
    refused(craft(PLAIN, pickled=pickled(part)), 'items|deeply')


@pytest.mark.parametrize('key', [b'\x8a\x0a' + b'\1' * 10, b')', b'N\x85'])
def test_keys_that_could_share_one_hash_are_refused(craft, key):
    path = craft(PLAIN, pickled=pickled(b'}' + key + b'K\x01s'))
    refused(path, 'key of type', NotPlainFileError)


@pytest.mark.parametrize(
    'raw',
    [
        b'',
        b'\x80',
        b'\x80\x02',
        b'a',
        b'0',
        b'R',
        b'b',
        b'Q',
        b'u',
        b's',
        b'h\x05',
        b'K',
        b'X\xff\xff\xff\x7fa',
        b'X\x02\0\0\0\xff\xff',
        b'cos\n',
        b'\x85',
        b'\x86',
        b't',
        b'N\x86',
        b'\xff',
    ],
)
def test_broken_pickles_are_refused(craft, raw):
    path = craft(PLAIN, pickled=b'\x80\x02' + raw)
    refused(path, 'damaged|calls|gives|uses')


def test_newer_protocols_need_trust(tmp_path):
    path = tmp_path / 'a.pth'
    torch.save({'a': 1}, path, pickle_protocol=4)
    refused(path, 'instruction', NotPlainFileError)
    assert read_file(path, trust=True) == {'a': 1}


def legacy(content):
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


@pytest.mark.parametrize(
    'change',
    [
        lambda data: data[:-5],
        lambda data: data.replace(b'K\x0c', b'K\x0d'),
        lambda data: data.replace(
            b'\x0c' + bytes(7), (10**9).to_bytes(8, 'little')
        ),
        lambda data: data.replace(b'M\xe9\x03', b'M\xe8\x03', 1),
        lambda data: data[:40],
        lambda data: pickle.dumps([1, 2], protocol=2),
        lambda data: b'',
        lambda data: b'<html>',
    ],
)
def test_damaged_old_files_are_refused(tmp_path, change):
    path = tmp_path / 'a.pth'
    data = legacy({'w': torch.arange(12.0)})
    changed = change(data)
    assert changed != data
    path.write_bytes(changed)
    refused(path, 'is ', DamagedFileError)


def test_old_file_that_leaves_a_storage_unset_is_refused(tmp_path):
    path = tmp_path / 'a.pth'
    data = legacy({'w': torch.arange(12.0)})
    keys = data.rindex(b']q\x00')
    stored = len(data) - 8 - 48
    path.write_bytes(data[:keys] + b'].' + data[stored:])
    refused(path, 'storages', DamagedFileError)


def test_archive_reads_what_torch_reads(tmp_path):
    path = tmp_path / 'a.pth'
    torch.save(PLAIN, path)
    reader = torch._C.PyTorchFileReader(str(path))
    archive = read_archive(path)
    assert archive.pickle == reader.get_record('data.pkl')
    assert archive.storages == {'0': 48}
