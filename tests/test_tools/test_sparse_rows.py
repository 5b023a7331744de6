"""Rows of sparse models: measured by a tool, shown on a page."""

import importlib.util
import json

import pytest

pytest.importorskip('mmengine')

from taskptq.bench.recipe_rows import write_json


@pytest.fixture
def tool(repo_root, tmp_path, monkeypatch):
    path = repo_root / 'tools' / 'sparse_rows.py'
    spec = importlib.util.spec_from_file_location('sparse_rows', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, 'FOLDER', tmp_path)
    return module


def row(recipe, seed, value, **others):
    return {
        'recipe': recipe,
        'seed': seed,
        'images': 32,
        'value': value,
        'zeros': 70,
        'prunable': 100,
        'layer_rates': [0.1, 0.96],
        'cpu_seconds': 25.0,
        'file_bytes': 1_234_567,
        **others,
    }


def test_the_page_shows_means_spreads_and_shares(tool, tmp_path):
    page = tmp_path / 'README.md'
    page.write_text(f'# Sparse\n\n{tool.BEGIN}\nold\n{tool.END}\n\nend\n')
    stored = {
        'model': 'net',
        'dataset': 'set',
        'metric': 'ap',
        'float': {'value': 0.5},
        'rows': [
            row('sparse70', 0, 0.49),
            row('sparse70', 1, 0.47),
            row('sparse80', 0, 0.4),
        ],
    }
    write_json(tmp_path / 'net_set.json', stored)
    tool.main(['--page'])
    text = page.read_text()
    assert 'old' not in text
    assert text.startswith('# Sparse\n')
    assert text.endswith(f'{tool.END}\n\nend\n')
    assert (
        '| `sparse70` | 32 | 2 | 0.48 ± 0.014 | 96.0% | 70 of 100 | '
        '10% to 96% | 1.23 | 25 |' in text
    )
    assert '| `sparse80` | 32 | 1 | 0.4 | 80.0% |' in text


def test_the_stored_page_is_that_of_the_stored_rows(tool, repo_root):
    folder = repo_root / 'configs' / 'sparsity'
    text = (folder / 'README.md').read_text(encoding='utf-8')
    for path in folder.glob('*.json'):
        stored = json.loads(path.read_text(encoding='utf-8'))
        assert '\n'.join(tool.page_lines(stored)).rstrip() in text
        for one in stored['rows']:
            assert one['zeros'] is not None
            assert len(one['commit']) == 40, 'measure from a clean checkout'


def test_tables_or_the_page_have_to_be_asked_for(tool):
    with pytest.raises(SystemExit, match='give a table and recipes'):
        tool.main([])


def test_the_page_shows_times_of_a_runtime(tool, tmp_path):
    page = tmp_path / 'README.md'
    marks = '\n'.join((tool.BEGIN, tool.END, *tool.SPEED))
    page.write_text(f'# Sparse\n\n{marks}\n')
    seconds = {'dense': 0.004, 'packed': 0.002}
    found = {'packed_layers': 4, 'median_seconds': seconds, 'speed': 2.0}
    drawn = {'model': '4 layers', 'width': 64, 'zeros': 0.8, 'rows': 3}
    (tmp_path / 'runtime').mkdir()
    write_json(
        tmp_path / tool.RUNTIME,
        {'rows': [{**drawn, **found}, {'model': 'net.onnx', **found}]},
    )
    tool.main(['--page'])
    text = page.read_text()
    assert '| 4 layers of 64 x 64 | 80% | 3 | 4 | 4.00 | 2.00 | 2.00 |' in text
    assert '| net.onnx |  |  | 4 | 4.00 | 2.00 | 2.00 |' in text
    assert text.endswith(f'{tool.SPEED[1]}\n')
