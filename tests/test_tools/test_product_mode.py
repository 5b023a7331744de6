"""The benchmark of products that modules compute themselves."""

import importlib
import json
import sys

import pytest

pytest.importorskip('mmseg')

from mmengine.config import Config

from tests.test_bench.test_coverage.test_models import SEGMENTOR


@pytest.fixture
def benchmark(repo_root, monkeypatch, registry_guard):
    """Import tools/benchmarks as it runs."""
    monkeypatch.syspath_prepend(str(repo_root / 'tools'))
    yield importlib.import_module('benchmarks.__main__')
    for name in list(sys.modules):
        if name.split('.')[0] == 'benchmarks':
            del sys.modules[name]


def test_both_ways_run_in_turns(benchmark, tmp_path, capsys):
    config, out = tmp_path / 'dmnet.py', tmp_path / 'mode.json'
    Config(SEGMENTOR).dump(config)
    benchmark.main(
        ['product-mode', str(config), '--repeats', '2', '--out', str(out)]
    )
    result = json.loads(out.read_text())
    (model,) = result['models']
    assert model['products'] >= model['owners'] >= 1
    assert all(seconds > 0 for seconds in model['median_seconds'].values())
    assert result['ratio'] == model['ratio'] > 0
    assert result['reached'] == (result['ratio'] <= result['target'])
    assert 'dmnet.py' in capsys.readouterr().out


def test_a_model_without_such_products_is_refused(benchmark, tmp_path):
    config = tmp_path / 'fcn.py'
    head = {**SEGMENTOR['model']['decode_head'], 'type': 'FCNHead'}
    for key in ('filter_sizes', 'fusion'):
        head.pop(key, None)
    model = {**SEGMENTOR['model'], 'decode_head': head}
    Config({**SEGMENTOR, 'model': model}).dump(config)
    with pytest.raises(SystemExit, match=r'^fcn\.py: all its products have'):
        benchmark.main(['product-mode', str(config)])
