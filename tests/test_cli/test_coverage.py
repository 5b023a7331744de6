"""The command ``taskptq bench coverage``."""

from __future__ import annotations

import json
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
    monkeypatch.setattr(coverage, 'current_commit', lambda: 'c0ffee')
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
    assert {r['commit'] for r in records.values()} == {'c0ffee'}
    page = (tmp_path / 'COVERAGE.md').read_text()
    assert '`a.py`' in page
    assert 'KeyError: 3' in page
    assert 'Measured at commit `c0ffee`.' in page
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


def test_the_cheapest_comes_first(tmp_path: Path, measured: list[str]) -> None:
    given = ['zoo/a_r101.py', 'zoo/b_r18.py', 'zoo/c_r50.py']
    coverage.main([*given, '--out', str(tmp_path / 'coverage.json')])
    assert measured == ['b_r18.py', 'c_r50.py', 'a_r101.py']


@pytest.mark.parametrize(
    ('record', 'expected'),
    [
        (None, False),
        ({'failure': 'KeyError: 1'}, True),
        ({'float_seconds': 1.0}, False),
        ({'float_seconds': 9.0}, True),
        ({'float_seconds': 1.0, 'units': 3}, True),
        ({'float_seconds': 1.0, 'reconstruction_failure': 'no'}, True),
    ],
)
def test_missing_reconstruction_is_tried(
    record: dict[str, Any] | None, expected: bool
) -> None:
    assert coverage.is_done(record, args(steps=2, light_after=5)) is expected
    assert coverage.is_done(record, args()) is (record is not None)


def test_failed_reconstruction_leaves_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(path: Path, settings: Any, **limits: Any) -> dict[str, Any]:
        assert limits == {'seconds': 3, 'num_bytes': 2**30}
        if settings.get('steps'):
            return {'failure': 'ValueError: not contiguous'}
        return {'sqnr': 30.0}

    monkeypatch.setattr(coverage, 'run_apart', run)
    given = args(seconds=3, gibibytes=1, steps=2)
    assert coverage.run_one(Path('a.py'), given) == {
        'sqnr': 30.0,
        'reconstruction_failure': 'ValueError: not contiguous',
    }


def test_failure_without_reconstruction_is_the_record(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        coverage, 'run_apart', lambda *_, **__: {'failure': 'KeyError: 1'}
    )
    for steps in (0, 2):
        found = coverage.run_one(Path('a.py'), args(steps=steps))
        assert found == {'failure': 'KeyError: 1'}
