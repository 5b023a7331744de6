"""The benchmark of grid heads: same input for both, every head timed."""

import importlib
import json
import sys

import pytest

pytest.importorskip('mmdet')

BASE = """_base_ = ['mmdet::_base_/models/{zoo}_r50_fpn.py']
default_scope = 'mmdet'
model = dict(
    backbone=dict(depth=18, base_channels=8, init_cfg=None),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    {heads})
"""
RETINA = 'in_channels=16, feat_channels=16, stacked_convs=1, num_classes=1'
RPN = 'in_channels=16, feat_channels=16'
ROI = 'in_channels=16, fc_out_channels=16, num_classes=1'
GRID = (
    "type='taskptq.{}', loss_bbox=dict(type='taskptq.GridLoss', _delete_=True)"
)


def retinanet(grid):
    extra = GRID.format('GridRetinaHead') if grid else ''
    return BASE.format(
        zoo='retinanet', heads=f'bbox_head=dict({RETINA}, {extra})'
    )


def faster_rcnn(grid):
    rpn = GRID.format('GridRPNHead') if grid else ''
    roi = GRID.format('GridShared2FCBBoxHead') if grid else ''
    return BASE.format(
        zoo='faster-rcnn',
        heads=(
            f'rpn_head=dict({RPN}, {rpn}), roi_head=dict('
            'bbox_roi_extractor=dict(out_channels=16), '
            f'bbox_head=dict({ROI}, {roi}))'
        ),
    )


@pytest.fixture
def write(tmp_path):
    def make(name, text):
        path = tmp_path / f'{name}.py'
        path.write_text(text)
        return str(path)

    return make


@pytest.fixture
def benchmark(repo_root, monkeypatch, registry_guard):
    """Import tools/benchmark.py as it runs."""
    from mmengine.registry import DefaultScope

    scopes = dict(DefaultScope._instance_dict)
    monkeypatch.syspath_prepend(str(repo_root / 'tools'))
    yield importlib.import_module('benchmarks.__main__')
    for name in list(sys.modules):
        if name.split('.')[0] in ('benchmark', 'benchmarks'):
            del sys.modules[name]
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(scopes)


@pytest.mark.parametrize(
    ('make', 'heads'),
    [(retinanet, ['bbox_head']), (faster_rcnn, ['rpn_head', 'roi_head'])],
)
def test_every_head_is_timed(benchmark, write, tmp_path, capsys, make, heads):
    out = tmp_path / 'cost.json'
    benchmark.main(
        [
            'head-cost',
            write('grid', make(True)),
            write('plain', make(False)),
            '--repeats',
            '2',
            '--batch-size',
            '1',
            '--size',
            '64',
            '96',
            '--out',
            str(out),
        ]
    )
    result = json.loads(out.read_text())
    assert list(result['median_seconds']) == heads
    for stages in result['median_seconds'].values():
        for seconds in stages.values():
            assert seconds['plain'] > 0
            assert seconds['grid'] > 0
    total = {
        name: sum(
            stages['predict'][name]
            for stages in result['median_seconds'].values()
        )
        for name in ('plain', 'grid')
    }
    assert result['ratio'] == pytest.approx(total['grid'] / total['plain'])
    assert result['reached'] == (result['ratio'] <= result['target'])
    weights = result['head_weights']
    assert weights['grid'] > weights['plain']
    assert 'ratio' in capsys.readouterr().out


def test_two_detectors_are_refused(benchmark, write):
    with pytest.raises(SystemExit, match='configs of the same detector'):
        benchmark.main(
            [
                'head-cost',
                write('grid', retinanet(True)),
                write('plain', faster_rcnn(False)),
                '--repeats',
                '1',
                '--batch-size',
                '1',
                '--size',
                '64',
                '64',
            ]
        )
