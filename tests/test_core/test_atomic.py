"""Atomic writing: whole files, clear full-disk errors, nothing left over."""

import errno
import io
import os
import subprocess
import sys

import pytest
import torch
import warm_python

from taskptq.core.atomic import (
    DiskFullError,
    remove_stale_partials,
    write_atomically,
)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def dead_process():
    process = subprocess.Popen([sys.executable, '-c', ''])
    process.wait()
    return process.pid


def fill_disk_after(monkeypatch, limit):
    """Let every file of this process fail beyond ``limit`` bytes."""
    from taskptq.core import atomic

    class Full:
        def __init__(self, file):
            self.file, self.written = file, 0

        def write(self, data):
            self.written += len(data)
            if self.written > limit:
                raise OSError(errno.ENOSPC, 'No space left on device')
            return self.file.write(data)

        def __getattr__(self, name):
            return getattr(self.file, name)

    init = atomic._Recorder.__init__

    def limited(self, path):
        init(self, path)
        self.file = Full(self.file)

    monkeypatch.setattr(atomic._Recorder, '__init__', limited)


def test_writes_and_replaces(tmp_path):
    path = tmp_path / 'new' / 'a.bin'
    write_atomically(path, lambda file: file.write(b'one'))
    assert path.read_bytes() == b'one'
    write_atomically(str(path), lambda file: file.write(b'three'))
    assert path.read_bytes() == b'three'
    assert names(path.parent) == ['a.bin']


def test_torch_file_comes_back(tmp_path):
    path = tmp_path / 'a.pth'
    value = torch.arange(100_000)
    write_atomically(path, lambda file: torch.save({'x': value}, file))
    assert torch.equal(torch.load(path, weights_only=True)['x'], value)


def test_old_file_stands_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / 'a.bin'
    path.write_bytes(b'old')

    def write(file):
        file.write(b'new')
        assert path.read_bytes() == b'old'
        raise KeyError('reason')

    with pytest.raises(KeyError, match='reason'):
        write_atomically(path, write)
    assert path.read_bytes() == b'old'
    assert names(tmp_path) == ['a.bin']


@pytest.mark.parametrize('limit', [0, 10, 5000])
def test_full_disk_names_path_and_bytes(tmp_path, monkeypatch, limit):
    path = tmp_path / 'a.pth'
    value = {'x': torch.arange(5000)}
    buffer = io.BytesIO()
    torch.save(value, buffer)
    path.write_bytes(b'old')
    fill_disk_after(monkeypatch, limit)
    with pytest.raises(DiskFullError, match='disk is full') as error:
        write_atomically(path, lambda file: torch.save(value, file))
    text = str(error.value)
    assert str(path) in text
    assert '\n' not in text
    written = int(text.split(' takes ')[1].split(' bytes')[0].replace(',', ''))
    assert written == len(buffer.getvalue())
    assert path.read_bytes() == b'old'
    assert names(tmp_path) == ['a.pth']


def test_a_swallowed_write_error_is_not_success(tmp_path, monkeypatch):
    fill_disk_after(monkeypatch, 0)

    def careless(file):
        try:
            file.write(b'x')
        except OSError:
            return

    with pytest.raises(DiskFullError, match=r'takes 1 bytes'):
        write_atomically(tmp_path / 'a.bin', careless)
    assert names(tmp_path) == []


def test_other_errors_pass(tmp_path):
    def write(file):
        raise RuntimeError('another reason')

    with pytest.raises(RuntimeError, match='another reason'):
        write_atomically(tmp_path / 'a.bin', write)
    assert names(tmp_path) == []


def test_partial_of_a_dead_process_is_removed(tmp_path):
    path = tmp_path / 'a.bin'
    stale = tmp_path / f'.a.bin.{dead_process()}.partial'
    living = tmp_path / f'.a.bin.{os.getppid()}.partial'
    other = tmp_path / f'.b.bin.{dead_process()}.partial'
    unnumbered = tmp_path / '.a.bin.mine.partial'
    for file in (stale, living, other, unnumbered):
        file.write_bytes(b'x')
    write_atomically(path, lambda file: file.write(b'y'))
    assert not stale.exists()
    assert living.exists()
    assert other.exists()
    assert unnumbered.exists()
    assert remove_stale_partials(tmp_path / 'b.bin') == [other]


KILLED = """
import os, signal, sys
from taskptq.core.atomic import write_atomically
def write(file):
    file.write(b'half')
    os.kill(os.getpid(), signal.SIGKILL)
write_atomically(sys.argv[1], write)
"""


@pytest.mark.slow
def test_killed_while_writing(tmp_path, repo_root):
    path = tmp_path / 'a.bin'
    path.write_bytes(b'old')
    killed = warm_python.run(['-c', KILLED, path], cwd=repo_root)
    assert killed.returncode == -9
    assert path.read_bytes() == b'old'
    assert len(names(tmp_path)) == 2
    write_atomically(path, lambda file: file.write(b'new'))
    assert names(tmp_path) == ['a.bin']
