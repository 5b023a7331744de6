"""Pieces of a measurement: batches read once, digests of files."""

import hashlib
from collections.abc import Sequence

import pytest
import torch

pytest.importorskip('mmengine')

from taskptq.bench.measurement import Replay, file_digest


class Counted(Sequence):
    """Batches that count how often they are read."""

    reads = 0

    def __len__(self):
        return 2

    def __getitem__(self, index):
        if index >= 2:
            raise IndexError
        self.reads += 1
        return {'x': torch.full((2,), float(index))}


def test_batches_are_read_once_and_come_fresh():
    source = Counted()
    replay = Replay(source)
    for _ in range(2):
        for expected, batch in enumerate(replay):
            assert batch['x'].tolist() == [expected] * 2
            # A preprocessor may write into what it is given.
            batch['x'] = None
    assert len(replay) == 2
    assert source.reads == 2


def test_digest_is_of_the_bytes(tmp_path):
    path = tmp_path / 'a.pth'
    path.write_bytes(b'weights')
    assert file_digest(path) == hashlib.sha256(b'weights').hexdigest()
