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


def measured(method, bits, **others):
    return {
        'method': method,
        'bits': bits,
        'seed': 0,
        'value': 0.55,
        'metrics': {},
        'file_bytes': 2000,
        'command': 'python tools/run_table.py ...',
        'commit': 'a' * 40,
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
            'rows': [
                measured('gptq', 'w4a8'),
                measured('mse', 'w8a8', value=0.59),
                measured('mse', 'w4a4'),
                measured('ort-minmax', 'w8a8'),
            ],
        },
    )
    return SimpleNamespace(
        model='net',
        dataset='set',
        metric='coco/ap',
        config='net.py',
        checkpoint=str(checkpoint),
        results=results,
        calibration={'num_images': 64},
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
    rows = [
        (row['recipe'], row['value'], row['ratio']) for row in stored['rows']
    ]
    # The zoo's file has precedence over the table's row.
    assert rows == [
        ('w4a8_gptq', 0.55, 2.0),
        ('w8a8_mse', 0.5, 4.0),
        ('w2a8_mse', 0.5, 4.0),
    ]
    assert stored['float']['value'] == 0.6
