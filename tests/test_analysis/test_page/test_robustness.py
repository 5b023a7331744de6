import hashlib
import json
from types import SimpleNamespace

import pytest

from taskptq.analysis.page.robustness import robustness_beside

SUMMARY = {
    'corruptions': {
        'float': {'clean': 0.4, 'mean': 0.29, 'relative': 0.725},
        'w8a8': {
            'clean': 0.36,
            'mean': 0.237,
            'relative': None,
            'worst': 0.04,
            'worst_noise': 'fog=5',
            'excess': 0.013,
        },
    },
    'attacks': {'w8a8': {'least': {'4': 0.1}}},
}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / 'q.pth'
    path.write_bytes(b'weights')
    return SimpleNamespace(path=path)


def write(file, **changes):
    digest = hashlib.sha256(file.path.read_bytes()).hexdigest()
    content = {
        'images': 30,
        'subjects': [
            {'name': 'float', 'sha256': 'f'},
            {'name': 'w8a8', 'sha256': digest},
        ],
        'summary': SUMMARY,
        **changes,
    }
    (file.path.parent / 'robustness.json').write_text(json.dumps(content))


def test_scores_of_the_file_and_its_float_model(file):
    write(file)
    found = robustness_beside(file)
    assert found['images'] == 30
    first, second = found['rows']
    assert (first['model'], second['model']) == ('float', 'w8a8')
    assert first['noise'] == second['noise'] == 'corrupted images'
    assert first['excess'] is None
    assert second['excess'] == 0.013
    assert second['relative'] is None
    assert second['worst_noise'] == 'fog=5'


@pytest.mark.parametrize(
    'changes',
    [
        {'subjects': [{'name': 'w8a8', 'sha256': 'other'}]},
        {'subjects': 'none'},
        {'summary': None},
    ],
)
def test_scores_of_others_do_not_count(file, changes):
    write(file, **changes)
    assert robustness_beside(file) is None


def test_without_results_there_is_nothing(file):
    assert robustness_beside(file) is None
    write(file, summary={'systems': {'w8a8': {'clean': 'high'}}}, images='x')
    found = robustness_beside(file)
    assert found['images'] is None
    assert found['rows'][0]['clean'] is None
