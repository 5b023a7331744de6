import threading

import pytest


@pytest.fixture
def run_demo(demo, monkeypatch):
    module = demo('run_demo')
    monkeypatch.setattr(module, 'load_picture', lambda: None)
    return module


def measured(demo, row):
    return demo('demo_parts.rows').Measured(
        row=row, command='', ap=0.5, ap50=0.6, file_bytes=1, seconds=1.0
    )


def test_rows_run_together_and_keep_their_order(
    demo, run_demo, tmp_path, monkeypatch
):
    together = threading.Barrier(run_demo.LANES, timeout=20)
    folders = {}

    def run_row(row, *, root, work_dir):
        if row in run_demo.ROWS[-run_demo.LANES :]:
            together.wait()
        folders[row.key] = work_dir
        return measured(demo, row)

    monkeypatch.setattr(run_demo, 'run_row', run_row)
    results = run_demo.measure_rows(tmp_path)
    assert [result.row for result in results] == list(run_demo.ROWS)
    assert folders == {row.key: tmp_path / row.key for row in run_demo.ROWS}


def test_a_failing_row_drops_those_that_wait(
    demo, run_demo, tmp_path, monkeypatch
):
    started = []

    def run_row(row, *, root, work_dir):
        started.append(row)
        if len(started) == 1:
            raise RuntimeError(f'{row.key} failed')
        threading.Event().wait(0.5)
        return measured(demo, row)

    monkeypatch.setattr(run_demo, 'LANES', 1)
    monkeypatch.setattr(run_demo, 'run_row', run_row)
    with pytest.raises(RuntimeError, match='failed'):
        run_demo.measure_rows(tmp_path)
    assert started[0] == run_demo.ROWS[-1]
    assert len(started) <= 2


def test_a_failure_ends_the_demo_with_its_log(run_demo, tmp_path, monkeypatch):
    def run_row(row, *, root, work_dir):
        raise RuntimeError('end of the log')

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_demo, 'ROOT', tmp_path)
    monkeypatch.setattr(run_demo, 'generate', lambda folder: True)
    monkeypatch.setattr(run_demo, 'run_row', run_row)
    with pytest.raises(SystemExit, match='end of the log'):
        run_demo.main([])
