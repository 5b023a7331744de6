"""Tables and points of small files."""

import pytest

pytest.importorskip('mmengine')
pytest.importorskip('matplotlib')

from taskptq.bench.recipe_rows import write_json
from taskptq.bench.size_page import (
    BEGIN,
    END,
    page_lines,
    points_of,
    series_of,
    sparse_points,
    write_page,
)


def row(recipe, seed, value, **others):
    return {
        'recipe': recipe,
        'seed': seed,
        'images': 32,
        'value': value,
        'cpu_seconds': 25.0,
        'file_bytes': 500_000,
        'coded_bytes': 400_000,
        'ratio': 10.0,
        'weights': {
            'codes': 1_000_000,
            'entropy_bytes': 300_000,
            'coded_bytes': 303_000,
        },
        **others,
    }


@pytest.fixture
def stored():
    return {
        'model': 'net',
        'dataset': 'set',
        'metric': 'ap',
        'float': {'value': 0.5},
        'rows': [
            row('w4a8_gptq', 0, 0.49),
            row('w4a8_gptq', 1, 0.47),
            row('w8a8_size20x', 0, 0.4, coded_bytes=200_000, ratio=20.0),
        ],
    }


def test_the_largest_file_comes_first(stored):
    lines = page_lines(stored)
    assert lines[6] == (
        '| `w4a8_gptq` | 32 | 2 | 0.48 ± 0.014 | 96.0% | 500 | 400 '
        '| 10.00x | 2.42 | 1.010 | 25 |'
    )
    assert lines[7].startswith('| `w8a8_size20x` | 32 | 1 | 0.4 | 80.0% |  |')


def test_usual_grids_are_drawn_dense_and_coded(stored):
    found = {(p.series, p.name): p for p in points_of(stored)}
    assert found['dense codes', 'w4a8_gptq'].ratio == pytest.approx(8.0)
    assert found['entropy-coded', 'w4a8_gptq'].ratio == 10.0
    assert found['steps for a size', 'w8a8_size20x'].share == 0.8
    assert len(found) == 3


def test_files_without_a_coder_are_drawn_once(stored):
    bare = row('w3a8_gptq', 0, 0.45, coded_bytes=None, weights=None)
    stored['rows'].append(bare)
    found = {(p.series, p.name): p for p in points_of(stored)}
    assert found['dense codes', 'w3a8_gptq'].ratio == 10.0
    assert ('entropy-coded', 'w3a8_gptq') not in found
    assert '| 500 |  | 10.00x |  |  | 25 |' in '\n'.join(page_lines(stored))
    # A seed without one counts for the value alone.
    stored['rows'].append({**bare, 'recipe': 'w4a8_gptq', 'seed': 2})
    lines = page_lines(stored)
    assert lines[7].startswith('| `w4a8_gptq` | 32 | 3 | 0.47 ± 0.02 |')
    assert '| 500 | 400 | 10.00x | 2.42 | 1.010 |' in lines[7]


def test_sparse_models_are_drawn_as_well(stored):
    rows = [{'recipe': 's', 'value': v, 'file_bytes': 2e5} for v in (0.3, 0.5)]
    sparse = {'float': {'value': 0.5}, 'rows': rows}
    assert sparse_points(stored, sparse=sparse) == [
        ('sparse', 's', 20.0, pytest.approx(0.8))
    ]
    assert sparse_points(stored, sparse={'rows': []}) == []


@pytest.mark.parametrize(
    ('recipe', 'series'),
    [
        ('w8a8_mse', 'entropy-coded'),
        ('w8a8_size-trained_size10x', 'steps for a size, trained'),
        ('w8a8_sparse70_size16x', 'sparse'),
    ],
)
def test_recipes_say_their_series(recipe, series):
    assert series_of(recipe) == series


def test_the_page_is_written_between_its_marks(stored, tmp_path):
    (tmp_path / 'RESULTS.md').write_text(f'# A\n{BEGIN}\nold\n{END}\nend\n')
    write_json(tmp_path / 'net_set.json', stored)
    page = write_page(tmp_path)
    text = page.read_text()
    assert 'old' not in text
    assert text.startswith('# A\n')
    assert text.endswith(f'{END}\nend\n')
    assert '### net, set' in text
    first = (tmp_path / 'pareto.svg').read_bytes()
    write_page(tmp_path)
    assert (tmp_path / 'pareto.svg').read_bytes() == first
