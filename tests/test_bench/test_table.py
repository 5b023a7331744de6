"""Tables of results: rows in order, and keys that nobody reads."""

import pytest
import yaml

from taskptq.bench.table import read_table

BASE = dict(
    model='net',
    dataset='drawn',
    config='net.py',
    checkpoint='net.pth',
    metric='AP',
    groups=[
        dict(methods=['minmax', 'mse'], bits=['w8a8', 'w4a4'], seeds=[0]),
        dict(methods=['mse'], bits=['w2a4'], seeds=[0, 1]),
    ],
)


def write(folder, **changes):
    path = folder / 'net_drawn.table.yml'
    path.write_text(yaml.safe_dump({**BASE, **changes}))
    return path


def test_rows_of_all_groups(tmp_path):
    table = read_table(write(tmp_path))
    assert table.name == 'net_drawn'
    assert table.results == tmp_path / 'results' / 'net_drawn.json'
    names = [row.name for row in table.rows()]
    assert len(names) == len(set(names)) == 2 * 2 + 2
    assert names[-2:] == ['mse w2a4 0', 'mse w2a4 1']
    assert {row.name for row in table.rows('minmax w4a4')} == {'minmax w4a4 0'}


def test_settings_of_a_group_are_those_of_its_rows(tmp_path):
    groups = [
        dict(
            methods=['qdrop'],
            bits=['w4a4'],
            seeds=[3],
            reconstruction=dict(steps=7),
        )
    ]
    table = read_table(
        write(tmp_path, groups=groups, reconstruction=dict(batch_size=2))
    )
    (row,) = table.rows()
    assert (row.method, row.bits, row.seed) == ('qdrop', 'w4a4', 3)
    assert row.reconstruction == {'batch_size': 2, 'steps': 7}


@pytest.mark.parametrize(
    ('changes', 'said'),
    [
        (dict(colums={}), 'colums'),
        (dict(groups=[dict(methods=['mse'], bit=['w4a4'])]), 'bit'),
    ],
)
def test_unknown_keys_are_named(tmp_path, changes, said):
    with pytest.raises(ValueError, match=said):
        read_table(write(tmp_path, **changes))
