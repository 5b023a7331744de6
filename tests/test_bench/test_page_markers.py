from types import SimpleNamespace

import pytest

pytest.importorskip('mmengine')

from taskptq.bench.page_markers import (
    ABSENT,
    as_list,
    cells_of,
    entries_below,
    render,
    render_models,
)


def make_entry(folder, *cells, model='tiny'):
    """A stand-in for a table with one row for each (bits, method, value)."""
    rows = [
        {
            'bits': bits,
            'method': method,
            'seed': 0,
            'value': value,
            'metrics': {},
        }
        for bits, method, value in cells
    ]
    results = {
        'model': model,
        'dataset': 'set',
        'metric': 'coco/AP',
        'float': {'value': 0.5, 'metrics': {}},
        'rows': rows,
    }
    path = folder / f'{model}_set.table.yml'
    return SimpleNamespace(table=SimpleNamespace(path=path), results=results)


def test_cells_are_bits_and_method():
    assert cells_of(['w8a8_mse', 'w4a4-8_drd+centering']) == [
        ('w8a8', 'mse'),
        ('w4a4-8', 'drd+centering'),
    ]


@pytest.mark.parametrize('recipes', [[], ['w8a8'], ['w8a8_mse', 'w4a4']])
def test_a_cell_needs_a_method(recipes):
    with pytest.raises(ValueError, match='bits_method'):
        cells_of(recipes)


def test_models_that_lack_a_cell_are_left_out(tmp_path):
    whole = make_entry(
        tmp_path, ('w8a8', 'mse', 0.49), ('w4a4', 'mse', 0.4), model='whole'
    )
    part = make_entry(tmp_path, ('w8a8', 'mse', 0.48), model='part')
    unmeasured = SimpleNamespace(table=None, results=None)
    cells = [('w8a8', 'mse'), ('w4a4', 'mse')]
    text = render_models([whole, part, unmeasured], cells)
    lines = text.splitlines()
    assert [line.split()[1] for line in lines[2:]] == ['whole']
    assert render_models([part], cells) == ABSENT


def test_entries_of_a_folder_and_below(tmp_path):
    inside = make_entry(tmp_path / 'a' / 'b')
    entries = {'in': inside, 'out': make_entry(tmp_path / 'ab')}
    assert entries_below(tmp_path / 'a', entries) == [inside]
    with pytest.raises(ValueError, match=r'no \*\.table\.yml'):
        entries_below(tmp_path / 'c', entries)


@pytest.mark.parametrize('kind', ['table', 'targets', 'baselines'])
def test_a_row_is_named_only_where_one_is_shown(kind):
    with pytest.raises(ValueError, match='leave it out'):
        render(kind, 'tiny_set', {}, row=['mse', 'w8a8'])


def test_lines_become_a_list():
    assert as_list(['a', 'b']) == '- a\n- b\n'
    assert as_list([]) == ABSENT
