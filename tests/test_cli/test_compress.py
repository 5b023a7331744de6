"""taskptq compress on a small file."""

import json

import pytest
import torch
from torch import nn

from taskptq.cli import compress as module
from taskptq.core import QuantizerConfig, QuantSpec
from taskptq.export import load, pack_model
from taskptq.export.codecs import registry
from taskptq.modules.base import Scheme
from taskptq.modules.linear import QuantLinear


@pytest.fixture
def old(tmp_path):
    """A file as earlier versions wrote it."""
    weight = QuantizerConfig(spec=QuantSpec(num_bits=3, symmetric=True))
    torch.manual_seed(0)
    model = QuantLinear.from_float(
        nn.Linear(90, 80), scheme=Scheme(weight=weight)
    )
    model.calibrate_weights()
    model.freeze()
    path = tmp_path / 'q.pth'
    torch.save(pack_model(model, recipe={'qconfig': {}}, meta={}), path)
    return path


def test_the_new_file_reads_the_same(old, tmp_path, capsys):
    out = tmp_path / 'small.pth'
    module.main([str(old), '--out', str(out)])
    assert load(out)['digest'] == load(old)['digest']
    text = capsys.readouterr().out
    assert f'before {old.stat().st_size:,} bytes' in text
    assert out.stat().st_size < old.stat().st_size


def test_measuring_writes_nothing(old, capsys):
    module.main([str(old), '--json'])
    found = json.loads(capsys.readouterr().out)
    assert found['float_bytes'] == 4 * (90 * 80 + 80)
    assert [p.name for p in old.parent.iterdir()] == ['q.pth']


def test_refusals_are_one_sentence(old, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match='there is no file'):
        module.main([str(tmp_path / 'absent.pth')])
    torch.save({'state_dict': {}}, tmp_path / 'x.pth')
    with pytest.raises(SystemExit, match='not a quantized'):
        module.main([str(tmp_path / 'x.pth')])
    monkeypatch.setattr(registry.CODECS['zstd'], 'available', lambda: False)
    with pytest.raises(SystemExit, match='pip install zstandard'):
        module.main([str(old), '--out', 'unused.pth', '--codec', 'zstd'])
