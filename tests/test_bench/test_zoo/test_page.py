"""The zoo's table, one line for each float model."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from taskptq.bench.zoo.page import (
    relative_links,
    render_zoo,
    update_zoo_text,
)
from taskptq.bench.zoo.records import put_record

FLOAT = {'value': 0.29, 'metrics': {'coco/AP': 0.291}, 'file_bytes': 4096}


def record_of(file, *, committed=True, **more):
    return {
        **file.settings(),
        'file': f'configs/tiny/quantized/{file.name}-01234567.pth',
        'committed': committed,
        'bytes': 1024 if file.low_bit else 2048,
        'value': 0.2 if file.low_bit else 0.2844,
        **more,
    }


@pytest.fixture
def entries(zoo_files):
    table = zoo_files[0].table
    return {table.name: SimpleNamespace(table=table, results={'float': FLOAT})}


def cells(text):
    rule = text.splitlines().index(
        next(line for line in text.splitlines() if line.startswith('|--'))
    )
    return [
        [cell.strip() for cell in line.strip('|').split('|')]
        for line in text.splitlines()[rule + 1 :]
    ]


def test_a_line_holds_all_files_of_a_model(zoo_files, entries):
    eight, four = zoo_files
    onnx = {'committed': False, 'value': 0.28, 'parts': [{'bytes': 3072}]}
    files = [
        (eight, record_of(eight, onnx=onnx)),
        (four, record_of(four, committed=False)),
    ]
    onnx['parts'][0]['file'] = 'nowhere'
    onnx['latency'] = {'float_ms': 4.98, 'integer_ms': 2.5, 'ratio': 1.992}
    (line,) = cells(render_zoo(files, entries))
    assert line == [
        '[net](/configs/tiny/net_toy.py)',
        'toy',
        'AP',
        '0.291',
        '[0.284](/configs/tiny/quantized/net_w8a8_mse_toy-01234567.pth) '
        '`w8a8_mse`',
        '0.200 `w4a8_mse`',
        '0.280',
        '4',
        '2',
        '1',
        '3',
        '5.0',
        '2.5 (1.99x)',
    ]


def test_an_export_without_a_value_says_so(zoo_files, entries):
    part = {'file': 'configs/tiny/quantized/a.onnx', 'bytes': 1024}
    onnx = {'committed': True, 'value': None, 'parts': [part, part]}
    file = zoo_files[0]
    (line,) = cells(render_zoo([(file, record_of(file, onnx=onnx))], entries))
    assert line[6] == '[not evaluated](/configs/tiny/quantized/a.onnx)'
    assert (line[5], line[9], line[10]) == ('-', '-', '2')
    assert line[11:] == ['-', '-']


def test_models_of_others_come_first(zoo_files, entries):
    file = zoo_files[0]
    own = entries[file.table.name]
    other = SimpleNamespace(
        name='other_toy', foreign=True, model='other', dataset='toy',
        config='configs/tiny/other.py',
    )  # fmt: skip
    theirs = SimpleNamespace(
        **{**vars(file), 'table': other}, low_bit=False, label='w8a8',
    )  # fmt: skip
    found = {
        own.table.name: own,
        'other_toy': SimpleNamespace(table=other, results=None),
    }
    files = [(file, record_of(file)), (theirs, record_of(file))]
    lines = cells(render_zoo(files, found))
    assert [line[0].partition(']')[0] for line in lines] == ['[other', '[net']
    assert lines[0][3] == '-'


def test_only_what_was_made_as_listed_is_shown(zoo_files, entries):
    eight, four = zoo_files
    put_record(eight.name, record_of(eight))
    put_record(four.name, {**record_of(four), 'seed': 9})
    text = 'Before\n<!-- zoo -->\nold\n<!-- /zoo -->\nafter\n'
    new = update_zoo_text(text, Path(), (), entries)
    assert new.startswith('Before\n<!-- zoo -->\n| model')
    assert new.endswith('|\n<!-- /zoo -->\nafter\n')
    assert 'w8a8_mse' in new
    assert 'w4a8_mse' not in new
    assert update_zoo_text('no marker', Path(), (), entries) == 'no marker'


def test_without_files_the_table_says_so(entries):
    assert render_zoo([], entries) == 'Not measured yet.\n'


def test_links_follow_the_page():
    text = '[a](/projects/lanes/configs/b.pth) [c](https://d.org/configs/e)'
    page = Path('projects/lanes/README.md')
    assert relative_links(text, page=page) == (
        '[a](configs/b.pth) [c](https://d.org/configs/e)'
    )
