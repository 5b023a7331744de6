"""The content of a page, from files of a tiny model."""

import json

import pytest
from plain_detector import PlainDetector, images

import taskptq
from taskptq.analysis.page.content import (
    bits_of,
    file_entry,
    float_entry,
    page_content,
    titles_of,
)
from taskptq.analysis.page.side_files import record_metrics
from taskptq.analysis.sensitivity.record import (
    PointSensitivity,
    RoleSensitivity,
    SensitivityReport,
)
from taskptq.export.quantized_file import open_file


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    out = tmp_path_factory.mktemp('page') / 'q.pth'
    taskptq.quantize(
        PlainDetector().eval(),
        [(images(0),), (images(1),)],
        recipe=['w4a8_mse', dict(qconfig=dict(keep_float=['body.2.0']))],
        out=out,
    )
    return open_file(out)


def test_an_entry_of_a_file(file):
    entry = file_entry(file, title='mine')
    assert entry['title'] == 'mine'
    assert entry['facts']['file'] == 'q.pth'
    assert [x['name'] for x in entry['stays_float']] == ['body.2.0']
    assert 'keep_float' in entry['stays_float'][0]['reason']
    assert entry['quantization']['seconds'] > 0
    assert sum(x['share'] for x in entry['layers']) == pytest.approx(1)
    assert entry['metrics'] == {}
    assert entry['sensitivity'] is None
    # No folder of the machine is in what is shared.
    assert str(file.path.parent) not in json.dumps(entry)


def test_bits_and_their_shares(file):
    rows = {
        (r['point'], r['bits']): r for r in file_entry(file, title='')['bits']
    }
    assert set(rows) == {
        ('weight', 4),
        ('weight', 8),
        ('weight', 'float'),
        ('activation', 8),
        ('activation', 'float'),
    }
    weights = [r['share'] for key, r in rows.items() if key[0] == 'weight']
    assert sum(weights) == pytest.approx(1)
    assert bits_of([]) == []


def test_titles_differ(file):
    assert titles_of([file]) == ['w4a8_mse + own settings']
    titles = titles_of([file, file])
    assert len(set(titles)) == 2
    assert all('w4a8_mse' in title for title in titles)


def test_metrics_are_related_to_float(file):
    entry = file_entry(file, title='q', metrics={'mAP': 0.27, 'mAP_50': 0.4})
    content = page_content(
        [entry],
        float_model=float_entry(None, file=file, metrics={'mAP': 0.3}),
    )
    assert content['main_metric'] == 'mAP'
    assert content['files'][0]['kept'] == pytest.approx(0.9)
    assert content['float']['bytes'] == entry['facts']['float_bytes']
    assert content['metrics'][0] == {
        'name': 'mAP',
        'float': 0.3,
        'values': [0.27],
    }


def test_metrics_of_classes_come_from_reports_and_from_names(file):
    record_metrics(
        file.path.parent,
        {'coco/bbox_mAP': 0.3},
        digest=file.payload['digest'],
        file='q.pth',
        classes={'dog': 0.25, 'cow': None},
    )
    measured = file_entry(file, title='a')
    (file.path.parent / 'report.json').unlink()
    named = file_entry(file, title='b', metrics={'coco/dog_precision': 0.5})
    known = float_entry(None, file=file, metrics={}, classes={'dog': 0.75})
    content = page_content([measured, named], float_model=known)
    assert content['classes'] == [
        {'name': 'dog', 'float': 0.75, 'values': [0.25, 0.5]}
    ]


def test_times_of_single_layers_are_left_out(file):
    path = file.path.parent / 'quantization_report.json'
    before = path.read_text()
    choice = {'keep': 0.99, 'latency_table': {'layers': {}}}
    side = {'digest': file.payload['digest'], 'mixed_precision': choice}
    path.write_text(json.dumps(side))
    entry = file_entry(file, title='q')
    path.write_text(before)
    assert entry['mixed_precision'] == {'keep': 0.99}


def test_a_side_file_may_say_anything(file):
    path = file.path.parent / 'quantization_report.json'
    before = path.read_text()
    side = {
        'digest': file.payload['digest'],
        'seconds': 'long',
        'commit': ['x'],
        'calibration': {'seconds': None, 'warnings': 3},
        'reconstruction': {'units': [1, {'name': 5, 'loss_end': 'low'}]},
    }
    path.write_text(json.dumps(side))
    entry = file_entry(file, title='q')
    path.write_text(before)
    assert entry['quantization'] == {
        'seconds': None,
        'steps': {},
        'commit': "['x']",
    }
    (unit,) = entry['reconstruction']
    assert unit == {
        'name': '5',
        'loss_start': None,
        'loss_end': None,
        'seconds': None,
    }


def point(name, loss):
    return PointSensitivity(
        name=name,
        layer=name.rpartition('.')[0],
        point='activation',
        role='conv input',
        num_bits=8,
        macs=1,
        elements=1,
        sqnr_db=30.0,
        peak_to_std=5.0,
        codes_used=0.5,
        effective_bits=6.0,
        losses={'8': loss},
    )


def test_sensitivities_beside_the_file(file):
    report = SensitivityReport(
        points=[
            point('body.0.0.input_quantizer', 0.1),
            point('head.input_quantizer', 0.3),
        ],
        estimator='gradient',
        num_images=4,
        total=0.5,
        roles=[
            RoleSensitivity(
                role='conv input', num_points=2, macs=1, alone=0.4, others=0.1
            )
        ],
    )
    path = file.path.parent / 'sensitivity.json'
    path.write_text(json.dumps(report.to_dict()))
    found = file_entry(file, title='q')['sensitivity']
    path.unlink()
    assert [one['loss'] for one in found['points']] == [0.3, 0.1]
    assert found['roles'][0]['back'] == pytest.approx(0.8)
    assert any('head' in text for text in found['sentences'])


def test_nothing_measured(file):
    content = page_content([file_entry(file, title='q')], float_model=None)
    assert content['main_metric'] is None
    assert content['files'][0]['main'] is None
    assert content['files'][0]['kept'] is None
