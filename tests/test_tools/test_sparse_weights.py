"""The benchmark of packed sparse weights in OpenVINO."""

import importlib
import json
import sys

import numpy as np
import pytest

pytest.importorskip('openvino')
onnx = pytest.importorskip('onnx')


@pytest.fixture
def benchmark(repo_root, monkeypatch):
    """Import tools/benchmarks as it runs, with small layers."""
    monkeypatch.syspath_prepend(str(repo_root / 'tools'))
    found = importlib.import_module('benchmarks.__main__')
    for name, values in (('WIDTHS', (64,)), ('ZEROS', (0.8,)), ('ROWS', (3,))):
        monkeypatch.setattr(found.sparse_weights, name, values)
    yield found
    for name in list(sys.modules):
        if name.split('.')[0] == 'benchmarks':
            del sys.modules[name]


def test_both_ways_give_the_same_bits(benchmark, tmp_path, capsys):
    file, out = tmp_path / 'layers.onnx', tmp_path / 'found.json'
    file.write_bytes(benchmark.sparse_weights.drawn_layers(width=8, zeros=0))
    benchmark.main(
        ['sparse-weights', str(file), '--repeats', '2', '--out', str(out)]
    )
    result = json.loads(out.read_text())
    drawn, own = result['rows']
    assert (drawn['width'], drawn['zeros'], drawn['rows']) == (64, 0.8, 3)
    assert own['model'] == 'layers.onnx'
    assert own['packed_layers'] == 0
    for row in result['rows']:
        assert row['same_bits']
        seconds = row['median_seconds']
        assert row['speed'] == seconds['dense'] / seconds['packed']
    assert 'rows 3' in capsys.readouterr().out


def test_layers_have_the_zeros_that_were_asked_for(benchmark):
    content = benchmark.sparse_weights.drawn_layers(width=64, zeros=0.8)
    model = onnx.load_from_string(content)
    weights = [
        onnx.numpy_helper.to_array(one)
        for one in model.graph.initializer
        if one.name in {f'w{i}' for i in range(4)}
    ]
    assert len(weights) == 4
    for weight in weights:
        assert weight.dtype == np.int8
        assert np.mean(weight == 0) == pytest.approx(0.8, abs=0.03)
