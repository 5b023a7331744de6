"""Two gloo processes, started by tools/dist_test.sh, against one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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

    def start(*others, **recipe):
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
        environment = dict(
            os.environ,
            PYTHON=sys.executable,
            PORT=str(free_port()),
            PYTHONPATH=f'{TINY_TASK}:{ROOT}',
            OMP_NUM_THREADS='1',
        )
        done = subprocess.run(
            [
                'bash',
                str(ROOT / 'tools/dist_test.sh'),
                str(config),
                str(float_checkpoint),
                '2',
                '--work-dir',
                str(work_dir),
            ],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
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


def free_port():
    import socket

    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def assert_equal(first, second):
    assert set(first) == set(second)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.slow
def test_ranks_agree_with_each_other_and_with_one_process(run_one, run_two):
    first, second = run_two(**RECIPE)
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
