"""Pickles of plain data: floods, broken ones and newer protocols."""

import pytest
import torch
from file_refusals import PLAIN, pickled, refused

from taskptq.export.errors import (
    NotPlainFileError,
)
from taskptq.export.reader import read_file


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
