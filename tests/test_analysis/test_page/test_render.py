"""The page as HTML: complete, escaped, and without requests."""

import json
import re
from html.parser import HTMLParser

import pytest

from taskptq.analysis.page import render as module
from taskptq.analysis.page.noise import LayerNoise, summarize
from taskptq.analysis.page.render import (
    MissingPackageError,
    check_packages,
    render,
    write,
)

HOSTILE = '<script>alert("x")</script>'
VOID = {
    'meta',
    'link',
    'br',
    'rect',
    'polyline',
    'use',
    'image',
    'path',
    'line',
}


class Checker(HTMLParser):
    """Collects tags and addresses, and checks that elements are closed."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.addresses = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [
            value
            for name, value in attrs
            if name in ('src', 'href', 'xlink:href')
        ]
        assert not any(name.startswith('on') for name, _ in attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def checked(html):
    checker = Checker()
    checker.feed(html)
    assert checker.open == []
    return checker


def layer(name, reason=''):
    return {
        'name': name,
        'type': 'Conv2d',
        'status': 'float' if reason else 'quantized',
        'weight_bits': None if reason else 8,
        'activation_bits': None if reason else 8,
        'attention_bits': None,
        'softmax_bits': None,
        'reason': reason,
        'macs': 10,
        'share': 0.5,
    }


def entry(title='w8a8', text='plain'):
    noise = summarize(
        [
            LayerNoise(name=text, kind='linear', part=text, own_db=20.0),
            LayerNoise(name='b', kind='linear', part='b', is_output=True),
        ]
    )
    noise |= {'by_kind': [], 'by_part': []}
    return {
        'title': title,
        'digest': 'd' * 64,
        'facts': {
            'file': f'{text}.pth',
            'file_bytes': 1000,
            'float_bytes': 4000,
            'share_of_macs': 0.9,
            'share_of_parameters': 0.9,
            'verified': True,
            'fault': None,
            'recipe': text,
            'version': '0.1.0',
        },
        'layers': [layer(text), layer('x', reason=text)],
        'summary': text,
        'bits': [{'point': 'weight', 'bits': 8, 'layers': 1, 'share': 0.5}],
        'stays_float': [layer('x', reason=text)],
        'folded': 1,
        'warnings': [text],
        'metrics': {'mAP': 0.2},
        'classes': {text: 0.2},
        'benchmark': {
            'runtime': text,
            'threads': 1,
            'batch': 1,
            'timings': [
                {
                    'file': text,
                    'cpu_ms': 2.0,
                    'wall_ms': 3.0,
                    'cpu_ratio': None,
                    'wall_ratio': None,
                }
            ],
        },
        'robustness': {
            'images': 8,
            'rows': [
                {
                    'noise': text,
                    'model': text,
                    'clean': 0.4,
                    'mean': 0.3,
                    'relative': 0.75,
                    'worst': 0.1,
                    'worst_noise': text,
                    'excess': None,
                }
            ],
        },
        'main': 0.2,
        'kept': 0.5,
        'recipe': {'rewrites': [{'type': text}], 'note': text},
        'rewrites': [text],
        'calibration': '4 images',
        'quantization': {
            'seconds': 1.0,
            'steps': {'calibration': 0.5},
            'commit': 'c' * 40,
        },
        'reconstruction': [
            {'name': text, 'loss_start': 1.0, 'loss_end': None, 'seconds': 2}
        ],
        'mixed_precision': {'note': text},
        'export': None,
        'sensitivity': {
            'sentences': [text],
            'num_images': 4,
            'estimator': 'gradient',
            'roles': [
                {'role': text, 'num_points': 2, 'alone': 0.1, 'back': None}
            ],
            'points': [
                {
                    'name': text,
                    'role': text,
                    'num_bits': 8,
                    'loss': 0.1,
                    'sqnr_db': 30.0,
                    'peak_to_std': 4.0,
                    'effective_bits': 3.0,
                }
            ],
        },
        'noise': noise,
        'tensors': [
            {
                'name': text,
                'num_bits': 8,
                'quant_min': 0,
                'quant_max': 3,
                'scale': 0.1,
                'channels': 1,
                'counts': [1.0, 2.0],
                'low': -1,
                'high': 4,
                'least': 0.0,
                'greatest': 3.0,
                'clipped': 0.0,
                'db': None,
            }
        ],
    }


def picture(text):
    shape = {
        'kind': 'box',
        'x': 1.0,
        'y': 2.0,
        'width': 3.0,
        'height': 4.0,
        'mark': 'lost',
        'label': text,
        'score': 0.5,
    }
    return {
        'photo': 'data:image/jpeg;base64,AAAA',
        'height': 10,
        'width': 20,
        'name': text,
        'kind': 'worst',
        'columns': [
            {
                'title': text,
                'shapes': [
                    shape,
                    {**shape, 'kind': 'line', 'points': '1,2 3,4'},
                ],
                'overlay': None,
                'sentence': text,
            }
        ],
    }


def content(text='plain', files=1):
    return {
        'taskptq': '0.1.0',
        'model': text,
        'config': text,
        'float': {'file': text, 'bytes': 4000, 'metrics': {'mAP': 0.4}},
        'main_metric': 'mAP',
        'metrics': [{'name': text, 'float': 0.4, 'values': [0.2] * files}],
        'classes': [{'name': text, 'float': None, 'values': [None] * files}],
        'files': [entry(f'{text}{i}', text) for i in range(files)],
        'pictures': [picture(text)],
        'legend': [{'name': text, 'color': '#102030'}],
        'absent': {'noise': text, 'pictures': text, 'tensors': text},
        'settings': {
            'num_images': 4,
            'score': 0.3,
            'compared': True,
            'commands': [text],
            'date': '2026-01-01',
            'seconds': 1.0,
        },
    }


@pytest.mark.parametrize('files', [1, 3])
def test_a_page_is_well_formed_and_makes_no_request(files):
    found = checked(render(content(files=files)))
    assert found.tags.count('h1') == 1
    assert all(
        address.startswith(('#', 'data:')) for address in found.addresses
    )
    assert {'table', 'svg', 'style', 'script'} <= set(found.tags)


def test_names_of_strangers_are_text():
    html = render(content(HOSTILE, files=2))
    found = checked(html)
    assert found.tags.count('script') == 1
    assert HOSTILE not in html
    assert '&lt;script&gt;' in html


def test_the_policy_forbids_requests():
    html = render(content())
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1]
    assert policy.startswith("default-src 'none'; img-src data:")
    assert 'http' not in policy


def test_absent_sections_say_why():
    page = content()
    page |= {'pictures': [], 'metrics': [], 'main_metric': None}
    page['absent'] = {
        section: f'because of {section}'
        for section in ('noise', 'pictures', 'metrics', 'tensors')
    }
    one = page['files'][0]
    one |= {'main': None, 'kept': None, 'stays_float': []}
    del one['noise'], one['tensors']
    html = render(page)
    checked(html)
    for reason in page['absent'].values():
        assert reason in html
    assert 'Nothing: every product' in html


def test_crowded_pictures_name_only_disagreements():
    page = content()
    column = page['pictures'][0]['columns'][0]
    lost = column['shapes'][0]
    agreed = {**lost, 'mark': 'agreed', 'label': 'quiet'}
    column['shapes'] = [lost, *[agreed] * 5]
    assert render(page).count('>quiet 0.50</text>') == 5
    column['shapes'] = [{**lost, 'label': 'loud'}, *[agreed] * 30]
    html = render(page)
    assert '>quiet 0.50</text>' not in html
    assert '>loud 0.50</text>' in html


def test_a_damaged_file_is_said_first():
    page = content()
    page['files'][0]['facts'] |= {'verified': False, 'fault': 'digest differs'}
    assert 'the file is damaged.</b> digest differs' in render(page)


def test_the_same_content_is_written_as_json(tmp_path):
    out = tmp_path / 'new' / 'report.html'
    page = content()
    page['files'][0]['kept'] = float('inf')
    side = write(page, out)
    assert out.read_text(encoding='utf-8').startswith('<!doctype html>')
    found = json.loads(side.read_text())
    assert side == out.with_suffix('.json')
    assert found['files'][0]['facts'] == page['files'][0]['facts']
    assert found['files'][0]['kept'] is None
    assert found['pictures'][0]['columns'][0]['shapes']
    assert 'photo' not in found['pictures'][0]


def test_recorded_metrics_outlive_a_page(tmp_path):
    measured = [{'digest': 'other', 'metrics': {'mAP': 0.1}}]
    side = tmp_path / 'report.json'
    side.write_text(json.dumps({'measured': measured, 'old': 1}))
    write(content(), tmp_path / 'report.html')
    found = json.loads(side.read_text())
    assert found['measured'] == measured
    assert 'old' not in found


def test_a_missing_package_is_one_sentence(monkeypatch):
    check_packages()
    monkeypatch.setattr(module, 'PACKAGES', ('jinja2', 'nope'))
    with pytest.raises(MissingPackageError) as caught:
        check_packages()
    assert str(caught.value) == (
        'the page needs nope, which is not installed: pip install '
        "'taskptq[report]'"
    )
