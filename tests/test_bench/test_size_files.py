"""Rows of files that the zoo has measured."""

import json
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip('mmengine')

from taskptq.bench.recipe_rows import read_file, write_json
from taskptq.bench.size_files import add_zoo_rows


def entry(name, **others):
    return {
        'config': 'net.py',
        'file': f'{name}.pth',
        'recipe': [name],
        'seed': 0,
        'num_images': 64,
        'value': 0.5,
        'metrics': {'coco/ap': 0.5},
        'bytes': 4000,
        'committed': True,
        'sha256': '0' * 64,
        'command': 'taskptq quantize ...',
        'commit': 'f' * 40,
        **others,
    }


@pytest.fixture
def table(tmp_path):
    checkpoint = tmp_path / 'float.pth'
    torch.save({'state_dict': {'w': torch.zeros(10, 100)}}, checkpoint)
    results = tmp_path / 'results.json'
    write_json(
        results,
        {
            'float': [{'config': 'net.py', 'value': 0.6, 'seed': 0}],
            'environment': {'threads': 1},
        },
    )
    return SimpleNamespace(
        model='net',
        dataset='set',
        metric='coco/ap',
        config='net.py',
        checkpoint=str(checkpoint),
        results=results,
    )


def test_the_models_own_files_are_coded(table, tmp_path):
    zoo, path = tmp_path / 'zoo.json', tmp_path / 'rows.json'
    zoo.write_text(
        json.dumps(
            {
                'a': entry('w8a8_mse'),
                'b': entry('w4a8_mse', committed=False),
                'c': entry('w4a8_mse', config='other.py'),
                'd': entry('w2a8_mse', metrics={'exact/ap': 0.51}),
            }
        )
    )
    asked = []

    def coded(file):
        asked.append(file.name)
        return {'coded_bytes': 1000}

    for _ in range(2):
        add_zoo_rows(table, path, coded=coded, zoo=zoo)
    stored = read_file(path)
    assert asked == 2 * ['w8a8_mse.pth', 'w2a8_mse.pth']
    assert [row['recipe'] for row in stored['rows']] == [
        'w8a8_mse',
        'w2a8_mse',
    ]
    assert {row['ratio'] for row in stored['rows']} == {4.0}
    assert {row['value'] for row in stored['rows']} == {0.5}
    assert stored['float']['value'] == 0.6
