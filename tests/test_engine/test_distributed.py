"""Two gloo processes, one pair by tools/dist_test.sh, against one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import warm_python

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TINY_TASK = ROOT / 'tests' / 'tiny_task'


RECIPE = dict(
    qconfig=dict(
        weight=dict(num_bits=3, symmetric=False),
        activation=dict(type='LSQQuantizer', num_bits=4),
    ),
    calibration=dict(num_images=16, batch_size=4),
)


@pytest.fixture
def run_two(float_checkpoint, tmp_path):
    """Quantize in two processes; returns each rank's final state."""

    def start(*others, by_script=False, **recipe):
        config = tmp_path / 'two.py'
        hooks = [
            dict(type='taskptq.PTQHook', **recipe),
            *(dict(type=name) for name in ('TinyWitness', *others)),
        ]
        config.write_text(
            f'_base_ = [{str(TINY_TASK / "tiny_config.py")!r}]\n'
            f'custom_hooks = {hooks!r}\n'
        )
        work_dir = tmp_path / 'two'
        runner = run_script if by_script else run_ranks
        runner(config, float_checkpoint, work_dir)
        assert (work_dir / 'quantized.pth').is_file()
        return [torch.load(work_dir / f'rank{rank}.pth') for rank in (0, 1)]

    return start


@pytest.fixture
def run_one(make_runner, float_checkpoint):
    """Quantize in this process; returns the final state."""

    def start(**recipe):
        runner = make_runner(float_checkpoint, hook=recipe)
        runner.test()
        return runner.model.state_dict()

    return start


def run_script(config, checkpoint, work_dir):
    environment = dict(
        os.environ,
        PYTHON=sys.executable,
        PORT=str(warm_python.free_port()),
        PYTHONPATH=f'{TINY_TASK}:{ROOT}',
        OMP_NUM_THREADS='1',
    )
    words = ['bash', ROOT / 'tools/dist_test.sh', config, checkpoint, 2]
    done = subprocess.run(
        [*map(str, words), '--work-dir', str(work_dir)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def run_ranks(config, checkpoint, work_dir):
    """What the script starts, from processes that have imported torch."""
    words = [ROOT / 'tools/test.py', config, checkpoint]
    warm_python.run_ranks(
        [*words, '--launcher', 'pytorch', '--work-dir', work_dir],
        env=os.environ | {'PYTHONPATH': f'{TINY_TASK}:{ROOT}'},
    )


def assert_equal(first, second):
    assert set(first) == set(second)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.slow
def test_ranks_agree_with_each_other_and_with_one_process(run_one, run_two):
    first, second = run_two(**RECIPE, by_script=True)
    assert_equal(first, second)
    assert_equal(first, run_one(**RECIPE))


@pytest.mark.slow
def test_ranks_agree_after_reconstruction(run_one, run_two):
    settings = dict(steps=6, batch_size=4, scope='layer')
    first, second = run_two('TinySlowRank', **RECIPE, reconstruction=settings)
    assert_equal(first, second)
    nearest = run_one(**RECIPE)
    assert any(
        not torch.equal(value, nearest[name])
        for name, value in first.items()
        if name.endswith('weight')
    )
