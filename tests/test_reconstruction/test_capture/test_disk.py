import errno
import os
import subprocess
from pathlib import Path

import pytest
import torch
import warm_python

from taskptq.reconstruction import reconstruct
from taskptq.reconstruction.capture.cache import ActivationCache
from taskptq.reconstruction.capture.disk import (
    Estimate,
    check_room,
    estimate,
    new_folder,
    remove_abandoned,
    room,
)
from taskptq.testing import TINY_MODELS, tiny_batches

MIB = 1 << 20
KEPT_OPEN = """
import os, sys
from pathlib import Path
from taskptq.reconstruction.capture.disk import new_folder
folder = new_folder(Path(sys.argv[1]))
(folder / '000001.bin').write_bytes(b'1234')
print(folder, flush=True)
if sys.argv[2] == 'wait':
    sys.stdin.readline()
os._exit(1)
"""


@pytest.fixture
def spilling(tmp_path, repo_root):
    """Start a process with a spill folder that it never removes."""
    started = []

    def start(then):
        process = warm_python.start(
            ['-c', KEPT_OPEN, tmp_path, then],
            env=os.environ | {'PYTHONPATH': str(repo_root)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        started.append(process)
        folder = Path(process.stdout.readline().strip())
        if then != 'wait':
            process.wait()
        return folder

    yield start
    for process in started:
        process.stdin.close()
        process.stdout.close()
        process.wait()


@pytest.mark.slow
def test_only_what_killed_runs_left_is_removed(spilling, tmp_path):
    dead, alive = spilling('end'), spilling('wait')
    own = new_folder(tmp_path)
    other = tmp_path / dead.name.replace('taskptq-cache-', 'cache-')
    elsewhere = tmp_path / f'taskptq-cache-{"0" * 12}-{2**22 + 1}-abc'
    other.mkdir()
    elsewhere.mkdir()  # on another machine or in another container
    assert remove_abandoned(tmp_path) == [dead]
    left = set(tmp_path.iterdir())
    assert left == {alive, own, other, elsewhere}
    assert (alive / '000001.bin').exists()
    assert remove_abandoned(tmp_path / 'missing') == []


def test_next_run_removes_it(spilling, tmp_path, quantized, quick, forward):
    dead = spilling('end')
    batches = tiny_batches('conv')
    reconstruct(
        quantized('conv', batches),
        batches,
        quick(steps=2),
        forward=forward,
        cache_dir=tmp_path,
        progress=False,
    )
    assert not dead.exists()


class Watched(ActivationCache):
    """Notes the most it held."""

    most = (0, 0, 0)

    def put(self, key, tensor):
        super().put(key, tensor)
        now = (
            self.used_bytes + self.disk_bytes,
            self.used_bytes,
            self.disk_bytes,
        )
        Watched.most = tuple(map(max, self.most, now))


@pytest.mark.parametrize('budget', [0, 20_000, 1 << 30])
@pytest.mark.parametrize('name', TINY_MODELS)
def test_estimate_is_what_a_run_takes(
    name, budget, quantized, quick, forward, tmp_path, monkeypatch
):
    batches = tiny_batches(name, num_batches=3)
    model = quantized(name, batches)
    needed = []
    monkeypatch.setattr(Watched, 'reserve', lambda _, e: needed.append(e))
    monkeypatch.setattr(Watched, 'most', (0, 0, 0))
    monkeypatch.setattr(
        'taskptq.reconstruction.capture.cache.ActivationCache', Watched
    )
    reconstruct(
        model,
        batches,
        quick(steps=1, cache_bytes=budget),
        forward=forward,
        cache_dir=tmp_path,
        progress=False,
    )
    assert needed == [Estimate(*Watched.most)]
    assert Watched.most[0] > 0


def test_too_much_is_refused_before_the_work(
    quantized, quick, forward, tmp_path
):
    batches = tiny_batches('conv', num_batches=3)
    model = quantized('conv', batches)
    config = quick(
        cache_bytes=0, cache_disk_bytes=100, cache_dir=str(tmp_path)
    )
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(ValueError, match='cache_disk_bytes') as error:
        reconstruct(model, batches, config, forward=forward, progress=False)
    text = str(error.value)
    for part in (str(tmp_path), 'fewer images', 'cache_dir', 'cache_bytes'):
        assert part in text
    # Two passes of the first batch tell the units and their tensors.
    assert len(calls) == 2
    assert list(tmp_path.iterdir()) == []


def test_spilled_to_the_folder_of_the_settings(
    quantized, quick, forward, tmp_path, monkeypatch
):
    batches = tiny_batches('conv')
    seen = []
    original = new_folder
    monkeypatch.setattr(
        'taskptq.reconstruction.capture.cache.new_folder',
        lambda parent: seen.append(parent) or original(parent),
    )
    reconstruct(
        quantized('conv', batches),
        batches,
        quick(steps=1, cache_bytes=0, cache_dir=str(tmp_path / 'new')),
        forward=forward,
        progress=False,
    )
    assert seen == [tmp_path / 'new']
    assert list(seen[0].iterdir()) == []


def disk_of(monkeypatch, free):
    usage = type('Usage', (), {'free': free})
    monkeypatch.setattr('shutil.disk_usage', lambda _: usage)


def test_a_margin_is_left_free(tmp_path, monkeypatch):
    disk_of(monkeypatch, 100 * MIB)
    assert room(tmp_path / 'not/yet/there', None) == 90 * MIB
    assert room(tmp_path, 1000 * MIB) == 100 * MIB
    assert room(tmp_path, 5) == 5
    disk_of(monkeypatch, 1 << 40)
    assert room(tmp_path, None) == (1 << 40) - (1 << 30)


def test_ranks_share_a_disk(tmp_path, monkeypatch):
    needed = Estimate(total=60 * MIB, memory=0, disk=60 * MIB)
    disk_of(monkeypatch, 100 * MIB)
    check_room(needed, folder=tmp_path, budget=None)
    monkeypatch.setattr(
        'taskptq.reconstruction.capture.disk.gathered', lambda own: [own, own]
    )
    with pytest.raises(ValueError, match='about 120 MiB on disk'):
        check_room(needed, folder=tmp_path, budget=None)


def test_nothing_on_disk_always_fits(tmp_path, monkeypatch):
    disk_of(monkeypatch, 0)
    needed = Estimate(total=MIB, memory=MIB, disk=0)
    check_room(needed, folder=tmp_path, budget=0)


def test_estimate_of_no_units():
    empty = estimate([], num_batches=3, max_bytes=10)
    assert empty == Estimate(total=0, memory=0, disk=0)


@pytest.mark.skipif(
    not Path('/dev/full').exists(), reason='no device that is always full'
)
def test_full_disk_is_told_with_path_and_bytes(tmp_path, monkeypatch):
    cache = ActivationCache(0, directory=tmp_path)
    target = tmp_path / '000001.bin'
    target.symlink_to('/dev/full')
    monkeypatch.setattr(cache, '_new_path', lambda: target)
    with pytest.raises(OSError, match='the disk is full') as error:
        cache.put('x', torch.zeros(5000))
    assert error.value.errno == errno.ENOSPC
    assert '20,000 bytes' in str(error.value)
    assert str(target) in str(error.value)
    assert 'x' not in cache
    assert not target.is_symlink()
    cache.close()


def test_budget_holds_in_the_run_too(tmp_path):
    cache = ActivationCache(0, directory=tmp_path, max_disk_bytes=100)
    cache.put('a', torch.zeros(20))
    with pytest.raises(OSError, match='cache_disk_bytes=100 is used up'):
        cache.put('b', torch.zeros(6))
    cache.delete('a')
    cache.put('b', torch.zeros(25))
    assert cache.disk_bytes == 100
    assert cache.spilled_bytes == 180
    cache.close()
