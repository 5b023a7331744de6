"""Rows of small files."""

import importlib.util
import json

import pytest

pytest.importorskip('mmengine')
pytest.importorskip('matplotlib')

from taskptq.bench.size_page import page_lines


@pytest.fixture
def tool(repo_root):
    path = repo_root / 'tools' / 'size_rows.py'
    spec = importlib.util.spec_from_file_location('size_rows', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_stored_page_is_that_of_the_stored_rows(repo_root):
    folder = repo_root / 'configs' / 'size'
    text = (folder / 'RESULTS.md').read_text(encoding='utf-8')
    for path in folder.glob('*.json'):
        stored = json.loads(path.read_text(encoding='utf-8'))
        assert '\n'.join(page_lines(stored)).rstrip() in text
        for one in stored['rows']:
            assert (one['coded_bytes'] or 0) <= one['file_bytes']
            assert len(one['commit']) == 40, 'measure from a clean checkout'


def test_tables_or_the_page_have_to_be_asked_for(tool):
    with pytest.raises(SystemExit, match='give a table and recipes or --zoo'):
        tool.main([])
