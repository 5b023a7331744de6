"""Making and recording files of the zoo."""

import os
from pathlib import Path

import pytest

from taskptq.bench.zoo.write import write_export, write_file

FACTS = {'commit': 'abc', 'environment': {'torch': '2'}}


@pytest.fixture
def write(pretend, tmp_path):
    def run(file, old=None):
        return write_file(
            file,
            old,
            tools=pretend.tools(),
            folder=tmp_path / 'work',
            facts=FACTS,
        )

    return run


def test_a_record_says_what_made_the_file(zoo_files, write):
    file = zoo_files[0]
    record = write(file)
    path = Path(record['file'])
    assert path.name == f'net_w8a8_mse_toy-{record["sha256"][:8]}.pth'
    assert path.read_bytes() == b'codes'
    assert (record['bytes'], record['committed']) == (5, True)
    assert (record['value'], record['commit']) == (0.2844, 'abc')
    assert file.settings().items() <= record.items()


def test_a_new_file_replaces_the_old_one(zoo_files, write, pretend):
    old = write(zoo_files[0])
    pretend.content = b'other codes'
    new = write(zoo_files[0], old)
    assert not Path(old['file']).exists()
    assert Path(new['file']).read_bytes() == b'other codes'


def test_the_same_file_stays(zoo_files, write):
    old = write(zoo_files[0])
    path = Path(old['file'])
    os.utime(path, (0, 0))
    assert write(zoo_files[0], old) == old
    assert path.stat().st_mtime == 0


@pytest.mark.parametrize('reason', ['size', 'list'])
def test_some_files_are_only_recorded(write_zoo, write, monkeypatch, reason):
    if reason == 'size':
        monkeypatch.setattr('taskptq.bench.zoo.write.MAX_BYTES', 4)
    entry = {'recipe': 'w8a8', 'commit': reason != 'list'}
    (file,) = write_zoo(files=[entry])
    record = write(file)
    assert not record['committed']
    assert not file.folder.exists()
    assert record['bytes'] == 5


@pytest.fixture
def exported(write_zoo):
    (file,) = write_zoo(files=[{'recipe': 'w8a8_mse', 'onnx': True}])
    return file


def test_the_export_is_published_beside_the_file(exported, write, pretend):
    record = write(exported)
    (part,) = record['onnx']['parts']
    assert part['file'].endswith(f'{part["sha256"][:8]}.onnx')
    assert Path(part['file']).read_bytes() == b'graph of codes'
    assert record['onnx']['value'] == 0.2844
    assert pretend.calls[-2:] == ['export', 'test .onnx']


def test_an_export_may_be_left_to_be_made_on_demand(write_zoo, write):
    entry = {'recipe': 'w8a8_mse', 'onnx': True}
    (file,) = write_zoo(files=[entry])
    old = write(file)
    (file,) = write_zoo(files=[{**entry, 'commit_onnx': False}])
    record = write(file, old)
    assert record['committed']
    assert not record['onnx']['committed']
    assert record['onnx']['parts'] == old['onnx']['parts']
    assert [path.suffix for path in file.folder.iterdir()] == ['.pth']


def test_a_missing_export_leaves_the_file_as_it_is(
    write_zoo, write, pretend, tmp_path
):
    (file,) = write_zoo(files=[{'recipe': 'w8a8_mse'}])
    old = write(file)
    entry = {'recipe': 'w8a8_mse', 'onnx': True, 'dynamic': True}
    (file,) = write_zoo(files=[entry])
    pretend.calls.clear()
    new = write_export(
        file,
        old,
        tools=pretend.tools(),
        folder=tmp_path / 'work',
        facts={**FACTS, 'commit': 'def'},
    )
    assert pretend.calls == ['export', 'test .onnx']
    onnx = new.pop('onnx')
    assert new == old
    assert Path(onnx['parts'][0]['file']).is_file()
    assert (onnx['commit'], onnx['dynamic']) == ('def', True)


def test_parts_keep_their_names(exported, write, monkeypatch):
    def parts(path):
        other = path.with_name('model.roi_head.onnx')
        other.write_bytes(b'head')
        return [path, other]

    monkeypatch.setattr('taskptq.bench.zoo.work.parts_of', parts)
    main, head = (part['file'] for part in write(exported)['onnx']['parts'])
    assert head == main.removesuffix('.onnx') + '.roi_head.onnx'


def test_a_refused_export_is_recorded(exported, write, pretend):
    pretend.refusal = 'a layer has no form in ONNX'
    record = write(exported)
    assert record['onnx'] == {'refused': pretend.refusal}
    assert record['committed']


def test_an_export_that_the_host_cannot_test_has_no_value(
    exported, write, pretend
):
    plain = pretend.test

    def test(words):
        if words[1].endswith('.onnx'):
            raise SystemExit('no such input')
        plain(words)

    pretend.test = test
    onnx = write(exported)['onnx']
    assert onnx['value'] is None
    assert onnx['not_evaluated'] == 'no such input'
    assert Path(onnx['parts'][0]['file']).is_file()
