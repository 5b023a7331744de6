"""What a quantization leaves on disk."""

import json

import pytest
import torch

pytest.importorskip('mmengine')

from taskptq.engine.quantization_report import (
    STATE_DIR,
    structure_of,
    swap_summary,
    write_results,
    write_swap_report,
)
from taskptq.export.checkpoint import load
from taskptq.prepare import QConfig, prepare
from taskptq.prepare.products import trace_products
from taskptq.reconstruction import freeze
from taskptq.testing import tiny_model


@pytest.fixture
def prepared():
    model = tiny_model('conv').eval()
    config = QConfig.from_dict({'keep_float': ['layer1.conv1']})
    return model, config, prepare(model, config)


def test_summary_counts_layers_and_products(prepared, calibrated):
    model, _, report = prepared
    summary = swap_summary(report)
    assert summary == {
        'num_quantized': report.count('quantized'),
        'num_partly': 0,
        'num_float': 1,
        'num_unreached': 0,
    }
    products = trace_products(
        model, [torch.randn(1, 3, 16, 16)], forward=lambda m, x: m(x)
    )
    report.add_products(products, left_float={})
    assert 0 < swap_summary(report)['share_of_macs'] < 1
    assert set(structure_of(report)) == {'decisions', 'products'}


def test_report_of_the_swap_as_json_and_as_a_table(prepared, tmp_path):
    report = prepared[2]
    write_swap_report(report, tmp_path)
    rows = json.loads((tmp_path / 'swap_report.json').read_text())
    assert 'layer1.conv1' in json.dumps(rows)
    assert 'layer1.conv1' in (tmp_path / 'swap_report.txt').read_text()


def test_file_and_report_belong_together(prepared, calibrated, tmp_path):
    model, config = calibrated
    freeze(model)
    (tmp_path / STATE_DIR).mkdir()
    written = write_results(
        model,
        {'recipe': {'qconfig': config.to_dict()}, 'seconds': 1.0},
        work_dir=tmp_path,
        out=tmp_path / 'q.pth',
        meta={'dataset_meta': {'classes': ('a', 'b')}},
        structure={},
    )
    saved = json.loads((tmp_path / 'quantization_report.json').read_text())
    assert saved == written
    payload = load(tmp_path / 'q.pth')
    assert saved['digest'] == payload['digest']
    assert saved['file_bytes'] == (tmp_path / 'q.pth').stat().st_size
    assert payload['meta']['dataset_meta'] == {'classes': ['a', 'b']}
    # Resuming a finished run makes no sense.
    assert not (tmp_path / STATE_DIR).exists()


@pytest.fixture
def calibrated(prepared):
    from taskptq.calibration import calibrate

    model, config, _ = prepared
    batches = [torch.randn(2, 3, 16, 16)]
    calibrate(model, batches, forward=lambda m, x: m(x))
    return model, config
