import json

from taskptq.bench.file_markers import update_file_text

TEXT = '<!-- files:{kind} -->\nold\n<!-- /files -->\n'


def shown(kind, results, root):
    folder = root / 'projects/deployment/results' / kind
    folder.mkdir(parents=True)
    for found in results:
        path = folder / f'{found["name"]}.json'
        path.write_text(json.dumps(found))
    text = update_file_text(TEXT.format(kind=kind), root, (), {})
    assert text.startswith(f'<!-- files:{kind} -->\n|')
    return [
        [cell.strip() for cell in line.strip('|').split('|')]
        for line in text.splitlines()[3:-1]
    ]


def test_without_results_a_sentence_says_so(tmp_path):
    text = update_file_text(TEXT.format(kind='scores'), tmp_path, (), {})
    assert 'Not measured yet' in text
    other = '<!-- files:other -->\nold\n<!-- /files -->\n'
    assert update_file_text(other, tmp_path, (), {}) == other


def test_a_file_next_to_its_simulation(tmp_path):
    common = {'recipe': 'w8a8', 'test_images': None, 'within': 0.005}
    part = {'integer_layers': 7, 'float_layers': ['a']}
    results = [
        {
            **common,
            'name': 'a',
            'metric': 'mAP',
            'simulation': 0.5,
            'completed': 0.499,
            'file': 0.498,
            'parts': [part, part],
        },
        {
            **common,
            'name': 'b',
            'metric': 'mIoU',
            'simulation': 38.70,
            'file': 38.72,
            'parts': [{**part, 'integer_layers': None}],
            'test_images': 40,
        },
    ]
    first, second = shown('scores', results, tmp_path)
    assert first[3:] == [
        'all',
        '0.500',
        '0.499',
        '0.498',
        '-0.0010',
        '0.005',
        '14 of 16',
    ]
    assert second[3:8] == ['40', '38.70', '', '38.72', '+0.020']
    assert second[-1] == ''


def test_speed_at_several_numbers_of_threads(tmp_path):
    def run(threads, ratio):
        rows = [
            {'what': 'float', 'cpu_ms': 30, 'cpu_ratio': 1, 'wall_ratio': 1},
            {
                'what': 'w8a8',
                'cpu_ms': 10,
                'cpu_ratio': 3,
                'wall_ratio': ratio,
            },
        ]
        return {'threads': threads, 'load': 2.5 / threads, 'timings': rows}

    result = {
        'name': 'a',
        'size': [64, 96],
        'runtime': 'openvino',
        'runs': [run(1, 3.0), run(2, 2.5)],
        'files': {
            'float': {'file_bytes': 4096},
            'w8a8': {'file_bytes': 1024},
        },
        'cores': 2,
    }
    lines = shown('speed', [result], tmp_path)
    assert lines[1] == [
        'a',
        '64x96',
        'openvino',
        'w8a8',
        '10.0',
        '3.00x',
        '1: 3.00x, 2: 2.50x',
        '2.5 of 2',
        '1',
    ]


def test_a_curve_begins_with_the_slowest(tmp_path):
    points = [
        {'what': 'fast', 'value': 0.25, 'ratio': 1.5},
        {'what': 'slow', 'value': 0.27, 'ratio': 1.2},
    ]
    result = {'name': 'a', 'metric': 'mAP', 'float': 0.3, 'points': points}
    lines = shown('curve', [result], tmp_path)
    assert [line[1] for line in lines] == ['slow', 'fast']
    assert lines[0][2:] == ['0.270', '90.0 %', '1.20x']
