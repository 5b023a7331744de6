"""Measure a config in a process of its own, with limits."""

from __future__ import annotations

import importlib
import json
import logging
import multiprocessing
import os
import re
import resource
import signal
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# The module whose ``measure`` is called.
MEASURE = 'taskptq.bench.coverage.one'
# Imported once, by the process from which the others are forked.
SHARED = ['torch._dynamo', 'mmdet.models', 'mmseg.models']
# A process may wait for others longer than it computes.
WAIT = 10


def run_apart(
    path: str | Path,
    settings: Mapping[str, Any],
    *,
    seconds: float,
    num_bytes: int,
    module: str = MEASURE,
) -> dict[str, Any]:
    """Measure one config; return its record or a dict with the ``failure``.

    Args:
        path: Config.
        settings: Further arguments of ``measure``.
        seconds: Most seconds of CPU.
        num_bytes: Most bytes of memory.
        module: Name of the module whose ``measure`` is called.
    """
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload([module, *SHARED])
    limits = {
        resource.RLIMIT_CPU: max(1, round(seconds)),
        resource.RLIMIT_DATA: num_bytes,
    }
    with tempfile.TemporaryDirectory() as folder:
        process = context.Process(
            target=_work,
            args=(module, str(path), dict(settings), folder, limits),
        )
        process.start()
        process.join(WAIT * seconds)
        late = process.exitcode in (None, -signal.SIGXCPU)
        if process.exitcode is None:
            process.kill()
            process.join()
        if late:
            return {'failure': f'not done after {seconds:g} s'}
        out, errors = Path(folder) / 'record.json', Path(folder) / 'errors'
        if out.exists():
            record: dict[str, Any] = json.loads(out.read_text('utf-8'))
            return record
        text = errors.read_text('utf-8', 'replace') if errors.exists() else ''
        return {'failure': reason_of(text, process.exitcode or 0)}


def reason_of(stderr: str, returncode: int) -> str:
    r"""Return the last line of an error, or how the process ended.

    >>> reason_of('Traceback\nKeyError: 1\n', 1)
    'KeyError: 1'

    Args:
        stderr: What the process wrote.
        returncode: Its exit status.
    """
    missing = re.search(r"No module named '([\w.]+)'", stderr)
    if missing:
        return f'needs the package {missing[1]}, which is not installed'
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if 'Error' in line.split(':')[0]]
    if returncode < 0:
        return f'ended by signal {-returncode}'
    found = (errors or lines or [f'exit status {returncode}'])[-1]
    found = ' '.join(found.split())
    # Paths of the machine say nothing about the model.
    return re.sub(r'(?:/[\w.-]+)+/(?=[\w.-]+)', '', found)[:300]


def _work(
    module: str,
    path: str,
    settings: dict[str, Any],
    folder: str,
    limits: dict[int, int],
) -> None:
    """Measure in this process and write what was found, or the error."""
    errors = os.open(Path(folder) / 'errors', os.O_WRONLY | os.O_CREAT)
    os.dup2(errors, 2)
    os.dup2(errors, 1)
    for kind, limit in limits.items():
        # The signal of the higher limit would not say which one it was.
        resource.setrlimit(kind, (limit, limit + 5))
    logging.disable(logging.WARNING)
    warnings.simplefilter('ignore')
    path = str(Path(path).resolve())
    # Configs name others relative to the folder that their host ships.
    root = next((p for p in Path(path).parents if p.name == '.mim'), None)
    if root is not None:
        os.chdir(root)
    record = importlib.import_module(module).measure(path, **settings)
    out = Path(folder) / 'record.json'
    out.write_text(json.dumps(record), encoding='utf-8')
