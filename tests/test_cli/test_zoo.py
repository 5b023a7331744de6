"""`taskptq bench zoo`: the tiny task's zoo, and what lies in this one."""

from pathlib import Path

import pytest
import yaml

from taskptq.bench.entries import FAMILIES
from taskptq.bench.zoo.records import (
    MAX_BYTES,
    is_outdated,
    load_records,
    put_record,
)
from taskptq.bench.zoo.source import FOLDER, read_zoo
from taskptq.bench.zoo.work import digest
from taskptq.cli import bench, zoo

ROOT = Path(__file__).resolve().parents[2]
MAX_TOTAL = 40_000_000


@pytest.fixture
def tiny_zoo(tiny_path, float_checkpoint, tmp_path, monkeypatch):
    """A zoo of two files of the tiny task, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(zoo, 'load_projects', list)
    folder = Path('configs') / 'tiny'
    folder.mkdir(parents=True)
    table = {
        'model': 'net',
        'dataset': 'toy',
        'config': str(tiny_path),
        'checkpoint': str(float_checkpoint),
        'metric': 'mean',
        'calibration': {'num_images': 8},
        'groups': [{'methods': ['mse', 'minmax'], 'bits': 'w8a8'}],
    }
    (folder / 'net_toy.table.yml').write_text(yaml.safe_dump(table))
    files = [{'recipe': 'w8a8_mse'}, {'recipe': 'w4a4_minmax'}]
    models = [{'table': 'configs/tiny/net_toy.table.yml', 'files': files}]
    Path('configs/zoo.yml').write_text(yaml.safe_dump({'models': models}))
    return folder / FOLDER


def outcome(*words):
    """Return what the command ends with, None if all is well."""
    try:
        bench.main(['zoo', *words])
    except SystemExit as error:
        return str(error)
    return None


def test_the_zoo_is_written_checked_and_rebuilt(tiny_zoo, capsys):
    assert outcome('--write', '--only', 'w8a8') is None
    (path,) = tiny_zoo.iterdir()
    content = path.read_bytes()
    outcome('--list')
    first, second = capsys.readouterr().out.splitlines()[-2:]
    assert first.startswith('net_w8a8_mse_toy: mean ')
    assert second == 'net_w4a4_minmax_toy: never made'
    # Made a second time, the file has the same bytes.
    text = outcome('--rebuild')
    assert text.splitlines()[1:] == [
        'net_w4a4_minmax_toy was never made: `taskptq bench zoo --write` does'
    ]
    assert list(tiny_zoo.iterdir()) == [path]
    path.write_bytes(b'PK' + content)
    assert f'{path} is damaged or another file' in outcome('--only', 'w8a8')


def list_export(**more):
    path = Path('configs/zoo.yml')
    content = yaml.safe_load(path.read_text())
    content['models'][0]['files'] = [
        {'recipe': 'w8a8_mse', 'onnx': True, **more}
    ]
    path.write_text(yaml.safe_dump(content))


def test_what_lacks_its_export_alone_is_not_made_again(tiny_zoo, monkeypatch):
    assert outcome('--write', '--only', 'w8a8') is None
    before = load_records()['net_w8a8_mse_toy']
    list_export()

    def write_export(file, old, *, facts, **options):
        return {**old, 'onnx': {'parts': [], 'commit': facts['commit']}}

    monkeypatch.setattr(zoo, 'write_export', write_export)
    assert outcome('--write') is None
    after = load_records()['net_w8a8_mse_toy']
    assert after.pop('onnx')['parts'] == []
    assert after == before
    # Now there is nothing to do, until it is to be of another kind.
    (file,) = read_zoo()
    assert zoo.is_written(file)
    list_export(dynamic=True)
    (file,) = read_zoo()
    assert not zoo.is_written(file)


def test_times_are_recorded_with_the_export(tiny_zoo, monkeypatch):
    assert outcome('--write', '--only', 'w8a8') is None
    assert outcome('--latency') is None
    assert 'onnx' not in load_records()['net_w8a8_mse_toy']
    list_export()
    record = load_records()['net_w8a8_mse_toy']
    put_record('net_w8a8_mse_toy', {**record, 'onnx': {'parts': []}})
    monkeypatch.setattr(
        zoo, 'measure_latency', lambda file, record, **options: {'ratio': 2}
    )
    assert outcome('--latency') is None
    onnx = load_records()['net_w8a8_mse_toy']['onnx']
    assert onnx == {'parts': [], 'latency': {'ratio': 2}}


def test_one_that_fails_does_not_stop_the_others(tiny_zoo, monkeypatch):
    found = {'net_w8a8_mse_toy': RuntimeError('no memory')}

    def check_file(file, record, **options):
        if file.name in found:
            raise found[file.name]
        return []

    monkeypatch.setattr(zoo, 'check_file', check_file)
    assert outcome() == (
        'The zoo differs:\nnet_w8a8_mse_toy: RuntimeError: no memory'
    )
    # What was found good is not run again.
    found['net_w4a4_minmax_toy'] = SystemExit('run again')
    assert outcome('--resume').count('\n') == 1
    assert outcome().endswith('net_w4a4_minmax_toy: run again')


def test_an_impossible_recipe_is_one_sentence(tiny_zoo):
    path = Path('configs/zoo.yml')
    path.write_text(path.read_text().replace('w4a4_minmax', 'w4a4_minmix'))
    text = outcome('--write', '--only', 'w4a4')
    assert 'minmix' in text
    assert 'Traceback' not in text
    assert len(text.splitlines()) == 2


def test_a_name_that_none_has_is_refused(tiny_zoo):
    assert outcome('--only', 'resnet') == (
        "configs/zoo.yml lists no file with 'resnet' in its name"
    )


@pytest.fixture
def listed(monkeypatch):
    """The files of this repository's zoo, with their records."""
    monkeypatch.chdir(ROOT)
    records = load_records()
    return [
        (file, records[file.name])
        for file in read_zoo()
        if file.name in records
    ]


def stored(listed):
    """Yield path and entry of each file that is said to be here."""
    for _, record in listed:
        if record['committed']:
            yield Path(record['file']), record
        onnx = record.get('onnx') or {}
        if onnx.get('committed'):
            for part in onnx['parts']:
                yield Path(part['file']), part


def test_files_of_the_repository_are_those_that_were_measured(listed):
    assert listed
    for path, entry in stored(listed):
        assert digest(path) == entry['sha256'], path
        assert path.stat().st_size == entry['bytes'] <= MAX_BYTES
    for file, record in listed:
        assert not is_outdated(file, record), file.name


def test_no_other_files_lie_beside_them_and_all_are_small(listed):
    named = {path for path, _ in stored(listed)}
    found = {
        path
        for pattern in FAMILIES
        for path in Path().glob(f'{pattern}/{FOLDER}/*')
    }
    assert found == named
    assert sum(path.stat().st_size for path in found) <= MAX_TOTAL


def quick_names(listed):
    """Files whose evaluation is quick, the smallest first."""
    quick = [
        (record['bytes'], file.name)
        for file, record in listed
        if record['committed']
        and file.table.dataset in ('bccd', 'culane-mini')
    ]
    assert len(quick) >= 3
    return [f'^{name}$' for _, name in sorted(quick)]


@pytest.mark.slow
@pytest.mark.data('bccd', 'culane_mini', 'weights')
def test_a_file_scores_what_is_printed(listed, registry_guard):
    assert outcome('--only', quick_names(listed)[0]) is None


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.data('bccd', 'culane_mini', 'weights')
def test_two_more_files_score_what_is_printed(listed, registry_guard):
    assert outcome('--only', '|'.join(quick_names(listed)[1:3])) is None
