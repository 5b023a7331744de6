"""Files of strangers: nothing they ask for is done before it is checked."""

import collections
import io
import pickle

import numpy as np
import pytest
import torch
from file_refusals import PLAIN, by_call, refused
from torch import nn

from taskptq.export.errors import (
    DamagedFileError,
    NotPlainFileError,
)
from taskptq.export.reader import read_file


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
