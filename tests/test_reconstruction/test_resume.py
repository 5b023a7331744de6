import errno
import importlib
import importlib.util
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

from taskptq.prepare.blocks import Unit
from taskptq.reconstruction import MSEReconLoss
from taskptq.reconstruction.resume import UnitStates
from taskptq.reconstruction.rounding.learned import UnitResult
from taskptq.reconstruction.state_file import StateError, write_state
from taskptq.testing import tiny_batches

WORKER = Path(__file__).resolve().parents[1] / 'test_calibration/worker.py'


@pytest.fixture(scope='module')
def worker():
    spec = importlib.util.spec_from_file_location('worker', WORKER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def start(folder, repo_root):
    path = os.pathsep.join([str(repo_root), os.environ.get('PYTHONPATH', '')])
    return subprocess.Popen(
        [sys.executable, str(WORKER), 'resume', str(folder)],
        env=os.environ | {'OMP_NUM_THREADS': '1', 'PYTHONPATH': path},
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(path, process):
    end = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, f'{path} does not appear'
        time.sleep(0.005)


@pytest.mark.slow
def test_killed_run_ends_with_the_same_bits(worker, tmp_path, repo_root):
    process = start(tmp_path, repo_root)
    wait_for(tmp_path / 'states/unit_001_rank0.pth', process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / 'done.pth').exists()
    left = {path.name for path in (tmp_path / 'states').glob('*.pth')}
    assert {'unit_000_rank0.pth', 'unit_001_rank0.pth'} <= left
    assert 'unit_003_rank0.pth' not in left

    process = start(tmp_path, repo_root)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    done = torch.load(tmp_path / 'done.pth')
    assert done['resumed'] == len(left)
    _, uninterrupted = worker.resumable(None)
    assert done['digest'] == uninterrupted['digest']


class Interrupted(Exception):
    pass


@pytest.fixture
def quick_run(worker):
    """A short resumable run."""

    def run(folder, **kwargs):
        return worker.resumable(folder, **{'steps': 8} | kwargs)

    return run


@pytest.mark.parametrize('rounding', ['adaround', 'gptq', 'nearest'])
@pytest.mark.parametrize('lost', [1, 3])
def test_goes_on_after_the_last_state(quick_run, tmp_path, rounding, lost):
    report, expected = quick_run(tmp_path, rounding=rounding)
    assert report.resumed_units == 0
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == [f'unit_00{i}_rank0.pth' for i in range(4)]
    for name in files[-lost:]:
        (tmp_path / name).unlink()
    report, payload = quick_run(tmp_path, rounding=rounding)
    assert report.resumed_units == 4 - lost
    assert [u.name for u in report.units] == [
        'stem',
        'layer1',
        'layer2',
        'head',
    ]
    assert payload['digest'] == expected['digest']


def test_finished_run_trains_nothing(quick_run, tmp_path, monkeypatch):
    _, expected = quick_run(tmp_path)
    # The package's attribute of that name is the function.
    module = importlib.import_module('taskptq.reconstruction.reconstruct')
    monkeypatch.setattr(module, 'train_unit', pytest.fail)
    report, payload = quick_run(tmp_path)
    assert report.resumed_units == 4
    assert payload['digest'] == expected['digest']
    assert report.units[1].steps == 8


CHANGES = [
    {'seed': 1},
    {'steps': 9},
    {'drop_prob': 0.25},
    {'batches': tiny_batches('conv', num_batches=3, seed=1)},
    {'batches': tiny_batches('conv', num_batches=2)},
]


@pytest.mark.parametrize('change', CHANGES, ids=lambda c: next(iter(c)))
def test_states_of_another_recipe_are_ignored(
    quick_run, tmp_path, change, caplog
):
    quick_run(tmp_path)
    with caplog.at_level(logging.WARNING, logger='taskptq'):
        report, payload = quick_run(tmp_path, **change)
    assert report.resumed_units == 0
    assert 'belongs to another recipe or checkpoint' in caplog.text
    _, expected = quick_run(None, **change)
    assert payload['digest'] == expected['digest']


def test_cache_budget_is_no_part_of_the_recipe(quick_run, tmp_path):
    quick_run(tmp_path)
    report, _ = quick_run(tmp_path, cache_bytes=12345)
    assert report.resumed_units == 4


def test_digest_knows_loss_and_float_parts(quantized, quick, tmp_path):
    def digest(model, loss):
        states = UnitStates(tmp_path, model, quick(), loss=loss, num_batches=2)
        return states.digest

    model = quantized('transformer')
    first = digest(model, MSEReconLoss())
    assert digest(model, MSEReconLoss()) == first
    assert digest(model, MSEReconLoss(normalize=False)) != first
    assert digest(model, torch.nn.functional.mse_loss) != first
    model.layers[0].norm1.bias.data += 1
    assert digest(model, MSEReconLoss()) != first


def test_state_keeps_gamma_and_beta(quantized, quick, tmp_path):
    def start():
        model = quantized(
            'transformer',
            attention={'per_head': True},
            query={'type': 'AlignedQuantizer'},
        )
        states = UnitStates(
            tmp_path, model, quick(), loss=MSEReconLoss(), num_batches=2
        )
        quantizer = model.layers[0].self_attn.query_quantizer
        return states, Unit('layers.0', model.layers[0]), quantizer

    states, unit, trained = start()
    for parameter in trained.learnable():
        parameter.data.mul_(1.5)
    states.save(0, unit, UnitResult(name=unit.name, steps=3))
    states, unit, fresh = start()
    assert not torch.equal(fresh.gamma, trained.gamma)
    assert states.load(0, unit).steps == 3
    for name, value in trained.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value), name


def test_without_a_folder_nothing_is_written(quick_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick_run(None)
    assert list(tmp_path.iterdir()) == []


def test_half_written_state_is_no_state(quick_run, tmp_path):
    _, expected = quick_run(tmp_path)
    whole = tmp_path / 'unit_003_rank0.pth'
    data = whole.read_bytes()
    whole.unlink()
    whole.with_suffix('.partial').write_bytes(data[: len(data) // 2])
    report, payload = quick_run(tmp_path)
    assert report.resumed_units == 3
    assert payload['digest'] == expected['digest']
    assert not whole.with_suffix('.partial').exists()


NAME = 'unit_002_rank0.pth'
KEY = 'layer2.conv1:weight'
POINT = 'conv1.input_quantizer'


def change(key, value):
    """Change an entry, and the digest over the content with it."""

    def apply(path):
        state = torch.load(path, weights_only=True)
        *places, last = key
        node = state
        for place in places:
            node = node[place]
        node[last] = value(node[last]) if callable(value) else value
        state.pop('content')
        try:
            write_state(path, state)
        except StateError:  # what has no digest is not written
            torch.save({**state, 'content': 'x'}, path)

    return apply


def alter_codes(path):
    """Change a code within its grid, and leave the digest as it was."""
    state = torch.load(path, weights_only=True)
    codes = state['codes'][KEY].view(-1)
    codes[0] = 0 if codes[0] else 1
    torch.save(state, path)


def first_version(path):
    state = torch.load(path, weights_only=True)
    torch.save(
        {
            key: state[key]
            for key in ('digest', 'result', 'codes', 'quantizers')
        },
        path,
    )


def compressed(path):
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    parts['archive/zeros'] = bytes(1 << 26)
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)


DAMAGES = {
    'empty': lambda path: path.write_bytes(b''),
    'text': lambda path: path.write_text('no state'),
    'half': lambda path: path.write_bytes(
        path.read_bytes()[: path.stat().st_size // 2]
    ),
    'one bit': lambda path: path.write_bytes(
        bytes(b ^ (i == 3000) for i, b in enumerate(path.read_bytes()))
    ),
    'pickle': lambda path: path.write_bytes(pickle.dumps({'a': 1})),
    'another pickle': lambda path: torch.save(Path('x'), path),
    'tensor': lambda path: torch.save(torch.ones(3), path),
    'other keys': lambda path: torch.save({'digest': 'x', 3: 4}, path),
    'large': lambda path: torch.save(torch.ones(1 << 21), path),
    'compressed': compressed,
    'first version': first_version,
    'altered codes': alter_codes,
    'a list as digest': change(['digest'], None),
    'a tensor as digest': change(['digest'], torch.ones(3)),
    'altered digest': change(['digest'], 'x'),
    'codes off the grid': change(['codes', KEY], lambda c: c + 8),
    'codes of another shape': change(['codes', KEY], lambda c: c[:1]),
    'codes of another type': change(['codes', KEY], lambda c: c.float()),
    'codes as a list': change(['codes', KEY], None),
    'codes of another layer': change(
        ['codes'], lambda c: c | {'head:weight': c[KEY]}
    ),
    'no codes': change(['codes'], None),
    'repeated codes': change(
        ['codes', KEY], lambda c: c.view(-1)[:1].expand(1 << 40)
    ),
    'sparse codes': change(['codes', KEY], lambda c: c.to_sparse()),
    'no quantizers': change(['quantizers'], lambda q: {}),
    'quantizers as text': change(['quantizers'], 'none'),
    'no scale': change(['quantizers', POINT], lambda q: {'grid': q['grid']}),
    'negative scale': change(['quantizers', POINT, 'scale'], lambda s: -s),
    'endless scale': change(['quantizers', POINT, 'scale'], lambda s: s / 0),
    'two scales': change(
        ['quantizers', POINT, 'scale'], lambda s: s.repeat(2)
    ),
    'wide grid': change(['quantizers', POINT, 'grid'], lambda g: g * 1000),
    'weight scale': change(
        ['quantizers', 'conv1.weight_quantizer', 'scale'], lambda s: s * 2
    ),
    'result of another unit': change(['result', 'name'], 'stem'),
    'steps as text': change(['result', 'steps'], '8'),
    'negative steps': change(['result', 'steps'], -1),
    'result without fields': change(['result'], lambda r: {}),
}


@pytest.fixture(scope='module')
def finished(worker, tmp_path_factory):
    """States of a whole run, and what it ended with."""
    folder = tmp_path_factory.mktemp('finished')
    _, payload = worker.resumable(folder, steps=8)
    return folder, payload['digest']


@pytest.mark.parametrize('kind', DAMAGES)
def test_a_state_that_is_not_whole_is_none(
    quick_run, finished, kind, tmp_path, caplog
):
    folder, expected = finished
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    path = tmp_path / NAME
    before = path.read_bytes()
    DAMAGES[kind](path)
    assert path.read_bytes() != before
    with caplog.at_level(logging.WARNING, logger='taskptq'):
        report, payload = quick_run(tmp_path)
    warnings = [r.getMessage() for r in caplog.records]
    assert len(warnings) == 1
    assert warnings[0].startswith(f'{path} ')
    assert '\n' not in warnings[0]
    assert report.resumed_units == 3
    assert payload['digest'] == expected
    # The next run finds the new one.
    assert quick_run(tmp_path)[0].resumed_units == 4


def test_nothing_of_a_bad_state_reaches_the_model(quantized, quick, tmp_path):
    model = quantized('transformer')
    unit = Unit('layers.0', model.layers[0])

    def states():
        return UnitStates(tmp_path, model, quick(), loss=MSEReconLoss())

    states().save(0, unit, UnitResult(name=unit.name))
    path = tmp_path / 'unit_000_rank0.pth'
    *_, last = dict(torch.load(path)['quantizers'])
    change(['quantizers', last], lambda state: state | {'more': None})(path)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert states().load(0, unit) is None
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(m.rounded_parameters for _, m in unit.layers())


def test_ranks_with_different_codes_train_anew(
    quantized, quick, tmp_path, monkeypatch
):
    model = quantized('transformer')
    unit = Unit('layers.0', model.layers[0])
    states = UnitStates(tmp_path, model, quick(), loss=MSEReconLoss())
    states.save(0, unit, UnitResult(name=unit.name))
    gathered = 'taskptq.reconstruction.resume.gathered'
    monkeypatch.setattr(gathered, lambda own: [own, own])
    assert states.load(0, unit) is not None
    for other in (None, 'other'):
        monkeypatch.setattr(gathered, lambda own, o=other: [own, o])
        assert states.load(0, unit) is None


def test_cache_settings_are_no_part_of_the_recipe(quick_run, tmp_path):
    quick_run(tmp_path / 'states')
    report, _ = quick_run(
        tmp_path / 'states',
        cache_dir=str(tmp_path / 'cache'),
        cache_disk_bytes=1 << 30,
    )
    assert report.resumed_units == 4


def test_full_disk_is_told_with_path_and_bytes(
    quantized, quick, tmp_path, monkeypatch
):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    model = quantized('transformer')
    unit = Unit('layers.0', model.layers[0])
    states = UnitStates(tmp_path, model, quick(), loss=MSEReconLoss())
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match='disk is full') as error:
        states.save(0, unit, UnitResult(name=unit.name))
    assert str(tmp_path / 'unit_000_rank0.pth') in str(error.value)
    assert 'bytes' in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('scope', ['layer', 'block'])
def test_stop_between_units(worker, scope, tmp_path, monkeypatch):
    options = {'steps': 8, 'scope': scope}
    _, expected = worker.resumable(None, **options)
    original = MSEReconLoss.__call__

    def interrupted(loss, quant_out, float_out, context):
        if context.unit == 'head':
            raise Interrupted
        return original(loss, quant_out, float_out, context)

    with monkeypatch.context() as patch:
        patch.setattr(MSEReconLoss, '__call__', interrupted)
        with pytest.raises(Interrupted):
            worker.resumable(tmp_path, **options)
    report, payload = worker.resumable(tmp_path, **options)
    assert report.resumed_units == len(report.units) - 1
    assert payload['digest'] == expected['digest']
