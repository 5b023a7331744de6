import json

import pytest
import yaml

pytest.importorskip('mmengine')

from taskptq.bench.entries import find_entries, find_sets

TABLE = {
    'model': 'tiny',
    'dataset': 'set',
    'config': 'c.py',
    'checkpoint': 'c.pth',
    'metric': 'coco/bbox_mAP',
    'groups': [{'methods': ['mse'], 'bits': ['w8a8']}],
}


def write_table(root, folder):
    path = root / folder / 'tiny_set.table.yml'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(TABLE))
    return path


def write_set(path, tables):
    path.write_text(yaml.safe_dump({'tables': tables, 'targets': []}))


@pytest.mark.parametrize(
    'folder', ['configs/a', 'projects/p/configs', 'projects/p/configs/a']
)
def test_tables_of_families_and_projects_are_found(tmp_path, folder):
    path = write_table(tmp_path, folder)
    (entry,) = find_entries(tmp_path).values()
    assert entry.table.path == path
    assert entry.results is None


def test_a_table_comes_with_its_results(tmp_path):
    path = write_table(tmp_path, 'configs/a')
    results = path.parent / 'results' / 'tiny_set.json'
    results.parent.mkdir()
    results.write_text(json.dumps({'rows': []}))
    assert find_entries(tmp_path)['tiny_set'].results == {'rows': []}


def test_two_tables_of_one_name_are_refused(tmp_path):
    write_table(tmp_path, 'configs/a')
    write_table(tmp_path, 'configs/b')
    with pytest.raises(ValueError, match=r'two tables tiny_set: .*configs/b'):
        find_entries(tmp_path)


def test_a_set_has_the_results_of_its_tables(tmp_path):
    folder = write_table(tmp_path, 'configs/a').parent
    write_set(folder / 'all.targets.yml', {'tiny_set': 'w8a8'})
    (found,) = find_sets(tmp_path, find_entries(tmp_path)).values()
    (member,) = found.members
    assert member.table.name == 'tiny_set'
    assert member.bits == 'w8a8'


@pytest.mark.parametrize(
    ('name', 'tables', 'message'),
    [
        ('all', ['absent'], "there is no table 'absent'"),
        ('tiny_set', ['tiny_set'], 'there is another tiny_set'),
    ],
)
def test_wrong_sets_are_refused(tmp_path, name, tables, message):
    folder = write_table(tmp_path, 'configs/a').parent
    write_set(folder / f'{name}.targets.yml', tables)
    with pytest.raises(ValueError, match=message):
        find_sets(tmp_path, find_entries(tmp_path))
