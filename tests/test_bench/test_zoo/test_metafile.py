"""The zoo's entries of a metafile."""

import pytest

from taskptq.bench.zoo.metafile import with_quantized

FLOAT = {
    'Name': 'net_toy',
    'In Collection': 'Nets',
    'Config': 'configs/tiny/net_toy.py',
    'Metadata': {'Training Data': 'toy'},
}


@pytest.fixture
def record():
    return {
        'file': 'configs/tiny/quantized/net-01234567.pth',
        'committed': True,
        'sha256': '01234567',
        'bytes': 10,
        'value': 0.2844,
        'command': 'taskptq quantize ...',
    }


def test_an_entry_says_where_a_file_is_from(write_zoo, record):
    weights = {'origin': 'https://net.org', 'license': 'MIT'}
    file, _ = write_zoo(weights=weights)
    found = with_quantized([FLOAT], [(file, record)])
    assert found[0] is FLOAT
    assert found[1] == {
        'Name': 'net_w8a8_mse_toy',
        'In Collection': 'Nets',
        'Config': 'configs/tiny/net_toy.py',
        'Weights': record['file'],
        'Metadata': {
            'Training Data': 'toy',
            'Float Model': 'net_toy',
            'Float Weights': 'https://net.org',
            'License': 'MIT',
            'Recipe': 'w8a8_mse',
            'Command': 'taskptq quantize ...',
            'SHA256': '01234567',
            'Bytes': 10,
        },
        'Results': [
            {
                'Task': 'Detection',
                'Dataset': 'toy',
                'Metrics': {'box AP': 28.44},
            }
        ],
    }


def test_entries_are_replaced_and_not_repeated(zoo_files, record):
    files = [(file, record) for file in zoo_files]
    once = with_quantized([FLOAT, {'Name': 'x', 'Metadata': None}], files)
    assert len(once) == 4
    assert with_quantized(once, files) == once
    assert len(with_quantized(once, files[:1])) == 3


def test_what_is_made_on_demand_has_no_weights(zoo_files, record):
    record['committed'] = False
    _, found = with_quantized([FLOAT], [(zoo_files[0], record)])
    assert 'Weights' not in found
    assert found['Metadata']['Float Weights'] == 'trained in this repository'


def test_an_export_is_listed_with_its_result(zoo_files, record):
    part = {'file': 'a.onnx', 'sha256': '89', 'bytes': 7}
    record['onnx'] = {'committed': True, 'value': 0.28, 'parts': [part]}
    _, found = with_quantized([FLOAT], [(zoo_files[0], record)])
    assert found['Metadata']['ONNX'] == [
        {'File': 'a.onnx', 'Committed': True, 'SHA256': '89', 'Bytes': 7}
    ]
    last = found['Results'][1]
    assert last['Runtime'] == 'ONNX Runtime'
    assert last['Metrics'] == {'box AP': 28.0}
    record['onnx'] = {'refused': 'no form'}
    _, found = with_quantized([FLOAT], [(zoo_files[0], record)])
    assert 'ONNX' not in found['Metadata']
    assert len(found['Results']) == 1
