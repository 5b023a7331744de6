"""The zoo's files against what is printed of them."""

from pathlib import Path

import pytest

from taskptq.bench.zoo.check import check_file
from taskptq.bench.zoo.write import write_file


@pytest.fixture
def listed(write_zoo):
    (file,) = write_zoo(files=[{'recipe': 'w8a8_mse', 'onnx': True}])
    return file


@pytest.fixture
def record(listed, pretend, tmp_path):
    found = write_file(
        listed,
        None,
        tools=pretend.tools(),
        folder=tmp_path / 'made',
        facts={'environment': {'torch': '2'}},
    )
    pretend.calls.clear()
    return found


@pytest.fixture
def check(listed, pretend, tmp_path):
    def run(record, **options):
        return check_file(
            listed,
            record,
            tools=pretend.tools(),
            folder=tmp_path / 'work',
            **options,
        )

    return run


def test_a_good_file_is_evaluated_and_not_made_again(check, record, pretend):
    assert check(record) == []
    assert pretend.calls == ['test .pth', 'test .onnx']


def test_a_file_on_demand_is_made_again(check, record, pretend):
    record |= {'committed': False}
    record['onnx'] |= {'committed': False}
    assert check(record) == []
    assert pretend.calls == ['quantize', 'test .pth', 'export', 'test .onnx']


@pytest.mark.parametrize('part', ['file', 'onnx'])
def test_a_damaged_file_is_named(check, record, part):
    entry = record if part == 'file' else record['onnx']['parts'][0]
    Path(entry['file']).write_bytes(b'c0des')
    (problem,) = check(record)
    assert problem.startswith(f'{entry["file"]} is damaged or another file')
    assert entry['sha256'] in problem


def test_a_missing_file_is_named(check, record, pretend):
    Path(record['file']).unlink()
    assert check(record) == [
        f'{record["file"]} is listed, but there is no such file'
    ]
    assert pretend.calls == []


def test_a_metric_counts_to_its_printed_digits(check, record, pretend):
    pretend.metrics = {'coco/AP': 0.2839}
    assert check(record) == []
    pretend.metrics = {'coco/AP': 0.2851}
    first, second = check(record)
    assert first == f'{record["file"]}: coco/AP is 0.285, listed is 0.284'
    assert '.onnx: coco/AP is 0.285' in second


def test_rebuilding_compares_the_bytes(check, record, pretend):
    assert check(record, rebuild=True) == []
    pretend.content = b'other codes'
    (problem,) = check(record, rebuild=True)
    assert problem.startswith('net_w8a8_mse_toy was made again with SHA-256')
    assert record['sha256'] in problem


def test_a_refused_export_is_not_checked(check, record, pretend):
    record['onnx'] = {'refused': 'a layer has no form in ONNX'}
    assert check(record) == []
    assert pretend.calls == ['test .pth']


def test_an_export_without_a_value_is_compared_by_its_bytes(
    check, record, pretend
):
    record['onnx']['value'] = None
    assert check(record) == []
    assert pretend.calls == ['test .pth']


@pytest.mark.parametrize(
    ('change', 'message'),
    [(None, 'was never made'), ({'seed': 5}, 'with other settings')],
)
def test_what_was_not_made_as_listed_is_named(check, record, change, message):
    (problem,) = check(change and {**record, **change})
    assert problem.startswith('net_w8a8_mse_toy')
    assert message in problem
