import json
import os
from pathlib import Path

import pytest

TEST_TOOL = """
import json, os, sys
out = sys.argv[sys.argv.index('--out') + 1]
metrics = {'coco/bbox_mAP': 0.5, 'coco/bbox_mAP_50': 0.75}
content = {'metrics': metrics, 'quantization': {'file_bytes': 1234}}
json.dump(content, open(out, 'w'))
print('threads', os.environ['OMP_NUM_THREADS'])
"""


def tool(root, text):
    (root / 'tools').mkdir()
    (root / 'tools' / 'test.py').write_text(text)


def test_a_row_runs_the_command_that_it_shows(demo, tmp_path, monkeypatch):
    rows = demo('demo_parts.rows')
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    tool(tmp_path, TEST_TOOL)
    result = rows.run_row(rows.ROWS[1], root=tmp_path, work_dir=Path('work'))
    assert (result.ap, result.ap50, result.file_bytes) == (0.5, 0.75, 1234)
    assert result.command.startswith(f'python tools/test.py {rows.CONFIGS}/')
    log = (tmp_path / 'work' / 'output.log').read_text()
    assert log == f'threads {rows.threads_per_row()}\n'


def test_rows_share_the_cores(demo, monkeypatch):
    rows = demo('demo_parts.rows')
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    for cores, threads in ((None, 1), (1, 1), (2, 1), (8, 4)):
        monkeypatch.setattr(os, 'cpu_count', lambda cores=cores: cores)
        assert rows.row_environment()['OMP_NUM_THREADS'] == str(threads)


def test_the_users_number_of_threads_wins(demo, monkeypatch):
    monkeypatch.setenv('OMP_NUM_THREADS', '7')
    environment = demo('demo_parts.rows').row_environment()
    assert environment['OMP_NUM_THREADS'] == '7'


def test_a_result_without_detections_counts_as_zero(demo, tmp_path):
    rows = demo('demo_parts.rows')
    tool(
        tmp_path,
        TEST_TOOL.replace(
            "'coco/bbox_mAP': 0.5, 'coco/bbox_mAP_50': 0.75", ''
        ),
    )
    result = rows.run_row(rows.ROWS[1], root=tmp_path, work_dir=Path('work'))
    assert json.loads((tmp_path / 'work' / 'metrics.json').read_text())
    assert (result.ap, result.ap50) == (0, 0)


def test_failing_run_shows_the_end_of_its_log(demo, tmp_path):
    rows = demo('demo_parts.rows')
    tool(tmp_path, "raise SystemExit('this went wrong')\n")
    with pytest.raises(RuntimeError, match='this went wrong'):
        rows.run_row(rows.ROWS[0], root=tmp_path, work_dir=Path('work'))
