import os
import signal
import subprocess

import pytest
import warm_python

from taskptq.reconstruction import reconstruct
from taskptq.reconstruction.state_folder import (
    FolderInUseError,
    locked,
    remove_partials,
)
from taskptq.testing import tiny_batches

HOLD = """
import sys, time
from taskptq.reconstruction.state_folder import locked
with locked(sys.argv[1]):
    print('held', flush=True)
    time.sleep(120)
"""


@pytest.fixture
def holder(tmp_path, repo_root):
    """A process that holds the lock of a folder."""
    process = warm_python.start(
        ['-c', HOLD, tmp_path / 'states'],
        env=os.environ | {'PYTHONPATH': str(repo_root)},
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == 'held\n'
    yield process
    if process.poll() is None:
        os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


@pytest.mark.slow
def test_another_process_is_refused_until_it_is_killed(holder, tmp_path):
    folder = tmp_path / 'states'
    with pytest.raises(FolderInUseError) as error, locked(folder):
        pass
    text = str(error.value)
    assert text.startswith(f'{folder} is in use by another run')
    assert 'wait' in text
    assert 'work_dir' in text
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with locked(folder):
        pass


def test_freed_by_an_error(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path / 'states'):
        raise KeyError
    with locked(tmp_path / 'states'):
        pass


def test_other_folders_are_free(tmp_path):
    with locked(tmp_path / 'one'), locked(tmp_path / 'two'):
        pass


def test_folder_may_be_removed_meanwhile(tmp_path):
    folder = tmp_path / 'states'
    folder.mkdir()
    with locked(folder):
        folder.rmdir()
        with pytest.raises(FolderInUseError), locked(folder):
            pass


def test_second_reconstruction_is_refused_before_any_work(
    quantized, quick, tmp_path, forward
):
    batches = tiny_batches('conv')
    model = quantized('conv', batches)
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    with locked(tmp_path), pytest.raises(FolderInUseError):
        reconstruct(
            model,
            batches,
            quick(),
            forward=forward,
            state_dir=tmp_path,
            progress=False,
        )
    assert calls == []


def test_every_rank_is_refused_with_the_first(tmp_path, monkeypatch):
    module = 'taskptq.reconstruction.state_folder'
    monkeypatch.setattr(f'{module}.own_rank', lambda: 1)
    monkeypatch.setattr(f'{module}.gathered', lambda own: [False, own])
    with pytest.raises(FolderInUseError), locked(tmp_path / 'states'):
        pass
    # The other ranks take no lock themselves.
    assert list(tmp_path.iterdir()) == []


def test_partial_files_are_removed(tmp_path):
    for name in ('.unit_000_rank0.pth.1234.partial', 'unit_001.partial'):
        (tmp_path / name).touch()
    kept = tmp_path / 'unit_000_rank0.pth'
    kept.touch()
    remove_partials(tmp_path)
    assert list(tmp_path.iterdir()) == [kept]
    remove_partials(tmp_path / 'missing')
