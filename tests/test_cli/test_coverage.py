"""The command ``taskptq bench coverage``."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip('mmengine')

from taskptq.cli import bench, coverage
from tests.test_bench.test_coverage.test_table import RECORD


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []

    def run(path: Path, args: Any) -> dict[str, Any]:
        seen.append(path.name)
        if path.stem == 'broken':
            return {'failure': 'KeyError: 3'}
        keys = ('host', 'family', 'config')
        return {k: v for k, v in RECORD.items() if k not in keys}

    monkeypatch.setattr(coverage, 'run_one', run)
    return seen


def test_configs_are_measured_once_and_written(
    tmp_path: Path, measured: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / 'coverage.json'
    given = ['coverage', 'zoo/a.py', 'zoo/broken.py', '--out', str(out)]
    bench.main(given)
    bench.main(given)
    assert measured == ['a.py', 'broken.py']
    records = json.loads(out.read_text())
    assert set(records) == {'own/zoo/a', 'own/zoo/broken'}
    assert records['own/zoo/broken']['failure'] == 'KeyError: 3'
    page = (tmp_path / 'COVERAGE.md').read_text()
    assert '`a.py`' in page
    assert 'KeyError: 3' in page
    text = capsys.readouterr().out
    assert 'own/zoo/a 100.00%' in text
    assert '2 families tried, 1 measured' in text
    bench.main([*given, '--redo'])
    assert len(measured) == 4


def test_unknown_family_is_refused(measured: list[str]) -> None:
    with pytest.raises(SystemExit, match="there is no 'nonsense'"):
        coverage.main(['--families', 'nonsense', '--out', 'x.json'])
    assert measured == []


def args(**settings: Any) -> Any:
    found = coverage.parse_args([])
    vars(found).update(settings)
    return found


def test_process_that_takes_too_long_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(command: Any, **options: Any) -> None:
        raise subprocess.TimeoutExpired(command, options['timeout'])

    monkeypatch.setattr(subprocess, 'run', run)
    found = coverage.run_one(Path('a.py'), args(seconds=3))
    assert found == {'failure': 'not done after 3 s'}


def test_error_of_a_process_is_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = subprocess.CompletedProcess([], 1, '', 'Traceback\nKeyError: 1\n')
    monkeypatch.setattr(subprocess, 'run', lambda *_, **__: done)
    found = coverage.run_one(Path('a.py'), args())
    assert found == {'failure': 'KeyError: 1'}


@pytest.mark.parametrize(
    ('stderr', 'status', 'expected'),
    [
        ('', -9, 'ended by signal 9'),
        ('', 3, 'exit status 3'),
        ('Killed\n', 1, 'Killed'),
        ('ValueError: a\nlater line\n', 1, 'ValueError: a'),
    ],
)
def test_reason(stderr: str, status: int, expected: str) -> None:
    assert coverage.reason_of(stderr, status) == expected
