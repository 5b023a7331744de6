"""Processes of a coverage run and their limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from taskptq.bench.coverage import process


@pytest.fixture(autouse=True)
def without_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Import no host, which none of these processes needs."""
    monkeypatch.setattr(process, 'SHARED', [])


def run(path: str, **settings: Any) -> dict[str, Any]:
    return process.run_apart(
        path,
        settings,
        seconds=2,
        num_bytes=2**32,
        module='tests.test_bench.test_coverage.light_measure',
    )


def test_record_comes_back() -> None:
    path = str(Path('a.py').resolve())
    assert run('a.py', steps=3) == {'path': path, 'steps': 3}


@pytest.mark.parametrize(
    ('path', 'expected'),
    [
        ('broken.py', "KeyError: 'broken.py'"),
        ('endless.py', 'not done after 2 s'),
        ('large.py', 'MemoryError'),
    ],
)
def test_failure_is_named(path: str, expected: str) -> None:
    assert run(path) == {'failure': expected}


@pytest.mark.parametrize(
    ('stderr', 'status', 'expected'),
    [
        ('', -9, 'ended by signal 9'),
        ('', 3, 'exit status 3'),
        ('Killed\n', 1, 'Killed'),
        ('RuntimeError: at "/a/b-1/c.cpp":7', 1, 'RuntimeError: at "c.cpp":7'),
        (
            "ModuleNotFoundError: No module named 'timm'\n"
            'ImportError: Failed to import custom modules\n',
            1,
            'needs the package timm, which is not installed',
        ),
        ('ValueError: a\nlater line\n', 1, 'ValueError: a'),
    ],
)
def test_reason(stderr: str, status: int, expected: str) -> None:
    assert process.reason_of(stderr, status) == expected
