"""A reconstruction that was killed goes on, and ends with the same bits."""

import errno
import importlib
import logging
import os
import signal
import time

import pytest
import ranks_worker
import torch
import warm_python

from taskptq.prepare.blocks import Unit
from taskptq.reconstruction import MSEReconLoss
from taskptq.reconstruction.resume import UnitStates
from taskptq.reconstruction.rounding.learned import UnitResult
from taskptq.testing import tiny_batches


def start(folder, repo_root):
    path = os.pathsep.join([str(repo_root), os.environ.get('PYTHONPATH', '')])
    with (folder / 'errors.txt').open('w') as errors:
        return warm_python.start(
            [ranks_worker.__file__, 'resume', folder],
            env=os.environ | {'PYTHONPATH': path},
            stderr=errors,
        )


def wait_for(path, process):
    end = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, errors_in(path.parents[1])
        assert time.monotonic() < end, f'{path} does not appear'
        time.sleep(0.005)


@pytest.mark.slow
def test_killed_run_ends_with_the_same_bits(tmp_path, repo_root):
    process = start(tmp_path, repo_root)
    wait_for(tmp_path / 'states/unit_001_rank0.pth', process)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / 'done.pth').exists()
    left = {path.name for path in (tmp_path / 'states').glob('*.pth')}
    assert {'unit_000_rank0.pth', 'unit_001_rank0.pth'} <= left
    assert 'unit_003_rank0.pth' not in left

    process = start(tmp_path, repo_root)
    assert process.wait(timeout=120) == 0, errors_in(tmp_path)
    done = torch.load(tmp_path / 'done.pth')
    assert done['resumed'] == len(left)
    _, uninterrupted = ranks_worker.resumable(None)
    assert done['digest'] == uninterrupted['digest']


def errors_in(folder):
    return (folder / 'errors.txt').read_text()


class Interrupted(Exception):
    pass


MATCHED = dict(match_float=True, output_ranges=True, bias_correction=True)
SETTINGS = [
    dict(rounding='adaround'),
    dict(rounding='gptq'),
    dict(rounding='nearest'),
    dict(rounding='gptq', **MATCHED),
    dict(start='gptq', **MATCHED),
]


@pytest.mark.parametrize('settings', SETTINGS, ids=str)
@pytest.mark.parametrize('lost', [1, 3])
def test_goes_on_after_the_last_state(quick_run, tmp_path, settings, lost):
    report, expected = quick_run(tmp_path, **settings)
    assert report.resumed_units == 0
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == [f'unit_00{i}_rank0.pth' for i in range(4)]
    for name in files[-lost:]:
        (tmp_path / name).unlink()
    report, payload = quick_run(tmp_path, **settings)
    assert report.resumed_units == 4 - lost
    assert [u.name for u in report.units] == [
        'stem',
        'layer1',
        'layer2',
        'head',
    ]
    assert payload['digest'] == expected['digest']


def test_finished_run_trains_nothing(
    quick_run, finished, tmp_path, monkeypatch
):
    # The package's attribute of that name is the function.
    module = importlib.import_module('taskptq.reconstruction.reconstruct')
    monkeypatch.setattr(module, 'fit_unit', pytest.fail)
    report, payload = quick_run(tmp_path)
    assert report.resumed_units == 4
    assert payload['digest'] == finished
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
    quick_run, finished, tmp_path, change, caplog
):
    with caplog.at_level(logging.WARNING, logger='taskptq'):
        report, payload = quick_run(tmp_path, **change)
    assert report.resumed_units == 0
    assert 'belongs to another recipe or checkpoint' in caplog.text
    _, expected = quick_run(None, **change)
    assert payload['digest'] == expected['digest']


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


def test_half_written_state_is_no_state(quick_run, finished, tmp_path):
    whole = tmp_path / 'unit_003_rank0.pth'
    data = whole.read_bytes()
    whole.unlink()
    whole.with_suffix('.partial').write_bytes(data[: len(data) // 2])
    report, payload = quick_run(tmp_path)
    assert report.resumed_units == 3
    assert payload['digest'] == finished
    assert not whole.with_suffix('.partial').exists()


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


def test_cache_settings_are_no_part_of_the_recipe(
    quick_run, finished, tmp_path
):
    report, _ = quick_run(
        tmp_path,
        cache_bytes=12345,
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
def test_stop_between_units(scope, tmp_path, monkeypatch):
    options = {'steps': 8, 'scope': scope}
    _, expected = ranks_worker.resumable(None, **options)
    original = MSEReconLoss.__call__

    def interrupted(loss, quant_out, float_out, context):
        if context.unit == 'head':
            raise Interrupted
        return original(loss, quant_out, float_out, context)

    with monkeypatch.context() as patch:
        patch.setattr(MSEReconLoss, '__call__', interrupted)
        with pytest.raises(Interrupted):
            ranks_worker.resumable(tmp_path, **options)
    report, payload = ranks_worker.resumable(tmp_path, **options)
    assert report.resumed_units == len(report.units) - 1
    assert payload['digest'] == expected['digest']
