"""Sizes of files: entropy, coder's bytes and the rest."""

import math

import pytest
import torch
from torch import nn

from taskptq.core import QuantizerConfig, QuantSpec
from taskptq.export import QuantizedCheckpointError, pack_model, save
from taskptq.export.size_report import float_bytes, size_report
from taskptq.modules.base import Scheme
from taskptq.modules.linear import QuantLinear


@pytest.fixture(scope='module')
def payload():
    torch.manual_seed(0)
    weight = QuantizerConfig(
        spec=QuantSpec(num_bits=4, symmetric=True), per_channel=True
    )
    model = QuantLinear.from_float(
        nn.Linear(300, 200), scheme=Scheme(weight=weight)
    )
    with torch.no_grad():
        model.weight.copy_(torch.randn(200, 300))
    model.calibrate_weights()
    model.freeze()
    return pack_model(model, recipe={'qconfig': {}}, meta={})


@pytest.mark.parametrize('codec', ['dense', 'auto'])
def test_sizes_add_up(payload, tmp_path, codec):
    path = tmp_path / 'q.pth'
    save(payload, path, codec=codec)
    report = size_report(path)
    assert report.file_bytes == path.stat().st_size
    assert report.float_bytes == 4 * (200 * 300 + 200)
    assert report.ratio == report.float_bytes / report.file_bytes
    weights = report.of_kind('weights')
    # Per-channel ranges of normal weights: about 3.4 of 4 bits.
    codes = 60_000
    assert weights.dense_bytes == codes // 2
    if codec == 'auto':
        assert weights.codec == 'rans'
        assert weights.codes == codes
        assert weights.entropy_bytes < weights.bytes
        assert weights.bytes < 1.01 * weights.entropy_bytes + 64
        assert weights.bytes < 0.92 * weights.dense_bytes
    total = report.index_bytes + sum(row.bytes for row in report.sections)
    assert total < report.file_bytes < total + 4096
    lines = list(report.lines())
    assert f'{report.file_bytes:,} bytes' in lines[0]
    assert len(lines) == 3 + len(report.sections)
    assert report.to_dict()['sections'][0]['kind'] == 'weights'


def test_entropy_is_shannons(tmp_path, payload):
    path = tmp_path / 'q.pth'
    save(payload, path, codec='rans')
    from taskptq.export import unpack_codes

    entry = payload['weights']['weight']
    codes = unpack_codes(
        entry['packed'], num_bits=4, quant_min=0, shape=[60_000]
    )
    shares = torch.bincount(codes).double() / 60_000
    shares = shares[shares > 0]
    bits = float(-(shares * shares.log2()).sum())
    found = size_report(path).of_kind('weights').entropy_bytes
    assert math.isclose(found, 60_000 * bits / 8, rel_tol=1e-9)


def test_old_files_are_measured_and_others_refused(tmp_path, payload):
    torch.save(payload, tmp_path / 'old.pth')
    report = size_report(tmp_path / 'old.pth')
    assert report.float_bytes == float_bytes(payload)
    torch.save({'state_dict': {}}, tmp_path / 'x.pth')
    with pytest.raises(QuantizedCheckpointError, match=r'x\.pth is not a'):
        size_report(tmp_path / 'x.pth')
    (tmp_path / 'y.pth').write_bytes(b'PK\3\4rest')
    with pytest.raises(QuantizedCheckpointError, match='truncated'):
        size_report(tmp_path / 'y.pth')
