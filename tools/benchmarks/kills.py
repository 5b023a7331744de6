"""Kill quantizations at random moments and check the results of later runs.

A tiny model is quantized in separate processes, with resume states and
activations on disk. Every try must end with the bits of an uninterrupted run,
or be refused.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from taskptq.engine.pipeline import quantize_model
from taskptq.engine.recipe import Recipe
from taskptq.reconstruction.state_folder import FolderInUseError
from taskptq.testing import tiny_batches, tiny_model

# Torch and mmengine are imported once, so a fork of this process is fast.
FORK = multiprocessing.get_context('fork')
BITS = {'num_bits': 3, 'symmetric': False}
REFUSED = 3
# Number of kills before a try may end.
MOST_KILLS = 3
LIMIT = 600.0  # seconds for one run


def quantize_once(folder: Path, *, steps: int) -> None:
    """Quantize into a folder, then end the process.

    Args:
        folder: Parent of the work folder and of spilled activations.
        steps: Steps of each unit.
    """
    torch.set_num_threads(1)
    recipe = Recipe.from_config(
        {
            'weight': BITS,
            'activation': {'type': 'LSQQuantizer', 'num_bits': 4},
            'edge_bits': None,
        },
        reconstruction={
            'steps': steps,
            'batch_size': 4,
            'skip_below': 0.0,
            'cache_bytes': 0,
            'cache_dir': str(folder / 'cache'),
        },
    )
    # A child's output would mix with the table.
    sys.stdout = sys.stderr = (folder / 'output.txt').open('a')
    try:
        quantize_model(
            tiny_model('conv'),
            tiny_batches('conv', num_batches=3),
            recipe=recipe,
            work_dir=folder / 'work',
        )
    except FolderInUseError as error:
        print(error, flush=True)
        os._exit(REFUSED)
    # Without the clean-up of the forked parent's state.
    sys.stdout.flush()
    os._exit(0)


def start(folder: Path, *, steps: int) -> BaseProcess:
    """Start a run."""
    process = FORK.Process(
        target=quantize_once, args=(folder,), kwargs={'steps': steps}
    )
    process.start()
    return process


def finish(process: BaseProcess) -> int:
    """Wait for a run; returns its exit code.

    Raises:
        RuntimeError: If it does not end.
    """
    process.join(LIMIT)
    if process.exitcode is None:
        process.kill()
        raise RuntimeError(f'a run does not end within {LIMIT:.0f} s')
    return process.exitcode


def kill(process: BaseProcess) -> bool:
    """Kill a run; False if it had ended before."""
    assert process.pid is not None
    if process.is_alive():
        os.kill(process.pid, signal.SIGKILL)
    return finish(process) == -signal.SIGKILL


def wait_for_write(process: BaseProcess, folder: Path) -> None:
    """Return as soon as a file is half written, or the run has ended."""
    while process.is_alive():
        if any(folder.glob('work/**/*.partial')):
            return


def digest_of(folder: Path) -> str:
    """Return the digest of a run's output."""
    payload = torch.load(folder / 'work/quantized.pth', weights_only=True)
    return str(payload['digest'])


def remains(folder: Path) -> list[str]:
    """Return files that a finished run should have removed."""
    found = [
        *folder.glob('work/**/*.partial'),
        *folder.glob('work/reconstruction_state'),
        *folder.glob('cache/*'),
    ]
    return [path.relative_to(folder).as_posix() for path in found]


def killed(
    folder: Path, *, seconds: float, steps: int, writing: bool
) -> dict[str, Any]:
    """Kill a quantization several times, then let it finish.

    Args:
        folder: Empty folder.
        seconds: Duration of an uninterrupted run.
        steps: Steps of each unit.
        writing: Kill while a file is being written, else at any moment.
    """
    kills = 0
    for _ in range(random.randint(1, MOST_KILLS)):
        process = start(folder, steps=steps)
        if writing:
            # Not always the first file.
            time.sleep(random.uniform(0, seconds))
            wait_for_write(process, folder)
        else:
            time.sleep(random.uniform(0, seconds))
        kills += kill(process)
    code = finish(start(folder, steps=steps))
    return {'kills': kills, 'codes': [code], **_result(folder)}


def together(folder: Path, *, seconds: float, steps: int) -> dict[str, Any]:
    """Start two runs in one work folder; the first may be killed."""
    first = start(folder, steps=steps)
    time.sleep(random.uniform(0, seconds))
    second = start(folder, steps=steps)
    kills = 0
    if random.random() < 0.5:
        time.sleep(random.uniform(0, seconds / 2))
        kills = int(kill(first))
    codes = [finish(process) for process in (first, second)]
    if kills:
        codes = [codes[1], finish(start(folder, steps=steps))]
    return {'kills': kills, 'codes': codes, **_result(folder)}


def _result(folder: Path) -> dict[str, Any]:
    done = (folder / 'work/quantized.pth').exists()
    return {
        'digest': digest_of(folder) if done else None,
        'remains': remains(folder),
    }


@contextmanager
def scratch() -> Iterator[Path]:
    """Create an empty folder and remove it afterwards."""
    with tempfile.TemporaryDirectory(prefix='taskptq-kills-') as name:
        yield Path(name)


def measure(*, tries: int, steps: int, seed: int) -> dict[str, Any]:
    """Run all tries.

    Args:
        tries: Number of tries of each kind.
        steps: Steps of each unit.
        seed: Seed of the moments.
    """
    random.seed(seed)
    with scratch() as folder:
        begin = time.perf_counter()
        finish(start(folder, steps=steps))
        seconds = time.perf_counter() - begin
        expected = digest_of(folder)
    options: dict[str, Any] = {'seconds': seconds, 'steps': steps}
    kinds: dict[str, Any] = {
        'at any moment': lambda f: killed(f, writing=False, **options),
        'while a file is written': lambda f: killed(
            f, writing=True, **options
        ),
        'two runs at once': lambda f: together(f, **options),
    }
    rows = {}
    for name, attempt in kinds.items():
        counts: Counter[str] = Counter()
        for _ in range(tries):
            with scratch() as folder:
                counts.update(_judge(attempt(folder), expected))
        rows[name] = dict(sorted(counts.items()))
    wrong = sum(row.get('wrong', 0) for row in rows.values())
    return {
        'tries': tries,
        'steps': steps,
        'seed': seed,
        'seconds_uninterrupted': seconds,
        'rows': rows,
        'wrong': wrong,
        'reached': wrong == 0,
    }


def _judge(found: dict[str, Any], expected: str) -> Counter[str]:
    """Count the outcomes of a try; 'wrong' must not occur."""
    codes = found['codes']
    same = found['digest'] == expected and not found['remains']
    fine = same and set(codes) <= {0, REFUSED} and 0 in codes
    return Counter(
        {
            'identical': int(fine),
            'kills': found['kills'],
            'refused': codes.count(REFUSED),
            'wrong': int(not fine),
        }
    )


def lines(result: dict[str, Any]) -> list[str]:
    """Return the result as text."""
    rows = [
        f'  {name}: {row["identical"]} of {result["tries"]} end with the '
        f'same bits after {row["kills"]} kills, {row["refused"]} runs '
        f'refused, {row["wrong"]} wrong'
        for name, row in result['rows'].items()
    ]
    return ['killed quantizations of a tiny model:', *rows]
