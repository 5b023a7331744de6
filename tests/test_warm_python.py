"""The quick processes of tests are processes of their own."""

import os
import signal
import subprocess

import pytest
import warm_python


def test_it_has_its_own_arguments_folder_environment_and_modules(tmp_path):
    program = (
        'import os, sys\n'
        'print(sys.argv, os.getcwd(), os.environ["ONE"], len(os.environ))\n'
        'hosts = ("mmengine", "mmcv", "mmdet", "mmseg", "taskptq", "pytest")\n'
        'print([name for name in hosts if name in sys.modules])\n'
        'print(sys.path[:2])'
    )
    environment = {'ONE': '1', 'PYTHONPATH': '/some'}
    done = warm_python.run(['-c', program, 2], cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"['-c', '2'] {tmp_path} 1 2",
        '[]',
        "['', '/some']",
    ]
    assert 'ONE' not in os.environ


@pytest.mark.parametrize(
    ('program', 'status', 'errors'),
    [
        ('raise SystemExit', 0, ''),
        ('raise SystemExit(3)', 3, ''),
        ('raise SystemExit("in one sentence")', 1, 'in one sentence\n'),
        ('1 / 0', 1, 'ZeroDivisionError: division by zero\n'),
        ('import os; os.kill(os.getpid(), 9)', -signal.SIGKILL, ''),
        ('import atexit, sys; atexit.register(sys.stderr.write, "x")', 0, 'x'),
    ],
)
def test_it_ends_as_any_process(program, status, errors):
    done = warm_python.run(['-c', program])
    assert (done.returncode, done.stdout) == (status, '')
    assert done.stderr.endswith(errors)
    assert done.stderr or not errors


def test_scripts_and_modules_run(tmp_path):
    path = tmp_path / 'script.py'
    path.write_text('import sys, beside\nprint(__name__, sys.argv[1:])\n')
    (tmp_path / 'beside.py').write_text('')
    expected = "__main__ ['a']\n"
    assert warm_python.run([path, 'a']).stdout == expected
    found = warm_python.run(['-m', 'script', 'a'], cwd=tmp_path)
    assert found.stdout == expected


def test_it_can_be_talked_to_and_killed():
    process = warm_python.start(
        ['-c', 'print(input(), flush=True); input()'],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    process.stdin.write('hello\n')
    process.stdin.flush()
    assert process.stdout.readline() == 'hello\n'
    assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.stdin.close()
    process.stdout.close()


def test_one_that_does_not_end_is_killed():
    process = warm_python.start(['-c', 'import time; time.sleep(60)'])
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.05)
    assert process.wait() == -signal.SIGKILL


def test_a_rank_that_fails_ends_the_others():
    program = (
        'import os, time\n'
        'assert os.environ["RANK"] == "0", "rank 1 of " '
        '+ os.environ["WORLD_SIZE"]\n'
        'time.sleep(60)'
    )
    with pytest.raises(AssertionError, match='rank 1 of 2'):
        warm_python.run_ranks(['-c', program], env=os.environ)
