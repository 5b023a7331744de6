"""The calls that plain files may make, with fixed arguments."""

import collections

import numpy as np
import pytest
import torch
from file_refusals import PLAIN, by_call, pickled, refused

from taskptq.export.errors import (
    DamagedFileError,
)


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
