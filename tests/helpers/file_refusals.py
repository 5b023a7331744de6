"""Files that are read or refused, within limits of time and memory."""

import pickle
import resource
import time

import pytest
import torch

from taskptq.export.errors import (
    FileError,
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


def pickled(instructions):
    return b'\x80\x02' + instructions + b'.'


def by_call(function, *args):
    class Call:
        def __reduce__(self):
            return function, args

    return pickle.dumps({'state_dict': {'w': Call()}}, protocol=2)
