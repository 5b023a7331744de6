"""What the measuring scripts write."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip('mmdet')
pytest.importorskip('onnxruntime')

from mmengine.config import Config, ConfigDict
from tiny_detectors import zoo_settings

FOLDER = Path(__file__).resolve().parents[1]


def script(name, results, monkeypatch):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, 'RESULTS', results)
    return module


class Report:
    """Of an export, without one."""

    def __init__(self, path):
        self.path = str(path)

    def to_dict(self):
        checks = {'integer_layers': 3, 'float_layers': ['a'], 'outputs': {}}
        return {
            'path': self.path,
            'checks': checks,
            'gates': {'x': 30.0},
            'float_gates': [],
        }


@pytest.fixture
def measure(tmp_path, monkeypatch):
    """The script without the work, and what its commands were given."""
    module = script('measure', tmp_path / 'results', monkeypatch)
    calls = []

    def export(config, checkpoint, *, out, **options):
        Path(out).write_bytes(b'1234')
        calls.append(('export', Path(checkpoint).name, options))
        return [Report(out)]

    def evaluate(argv):
        calls.append(('test', Path(argv[1]).name, argv))
        if argv[1].endswith('.pth'):
            return {'AP': 0.5}
        return {'AP': 0.499 if 'simulation' in argv else 0.498}

    def run(args):
        files = [args.file, *args.against]
        return {
            'timings': [
                {'cpu_ms': 10.0 / (i + 1), 'wall_ms': 12.0}
                for i in range(len(files))
            ]
        }

    monkeypatch.setattr(module.apis, 'export_onnx', export)
    monkeypatch.setattr(module.test, 'main', evaluate)
    monkeypatch.setattr(module.benchmark, 'run', run)
    monkeypatch.setattr(
        module.quantize, 'main', lambda argv: calls.append(('quantize', argv))
    )
    return SimpleNamespace(module=module, calls=calls, folder=tmp_path)


WORDS = ['c.py', 'f.pth', '--metric', 'AP', '--name', 'a']


def test_a_file_is_compared_with_its_simulation(measure):
    measure.module.main(
        [
            *WORDS,
            '--within',
            '0.005',
            '--test-images',
            '5',
            '--num-images',
            '4',
        ]
    )
    path = measure.folder / 'results/scores/a.json'
    found = json.loads(path.read_text())
    values = [found[key] for key in ('simulation', 'completed', 'file')]
    assert values == [0.5, 0.499, 0.498]
    assert found['within'] == 0.005
    assert found['file_bytes'] == 4
    assert found['parts'][0]['integer_layers'] == 3
    assert found['command'].endswith('--num-images 4')
    kinds = [call[0] for call in measure.calls]
    assert kinds == ['quantize', 'test', 'export', 'test', 'test']
    # All see the same images.
    for _, _, argv in (measure.calls[i] for i in (1, 3, 4)):
        assert 'test_dataloader.dataset.indices=5' in argv


def test_a_quantized_file_is_not_quantized_again(measure):
    measure.module.main([*WORDS, '--quantized', 'q.pth'])
    kinds = [call[0] for call in measure.calls]
    assert kinds == ['test', 'export', 'test', 'test']
    assert not measure.calls[1][2]['dynamic']


def test_images_of_any_size(measure):
    measure.module.main([*WORDS, '--quantized', 'q.pth', '--dynamic'])
    assert measure.calls[1][2]['dynamic']


def test_precisions_of_gates_make_a_curve(measure):
    measure.module.main(
        [*WORDS, '--float-value', '0.6', '--gate-limits', '20', '30']
    )
    path = measure.folder / 'results/curve/a.json'
    found = json.loads(path.read_text())
    assert [point['ratio'] for point in found['points']] == [2.0, 3.0]
    assert found['points'][1]['value'] == 0.498
    limits = [
        call[2].get('gate_limit')
        for call in measure.calls
        if call[0] == 'export'
    ]
    assert limits == [None, 20.0, 30.0]


def test_what_cannot_be_exported_is_one_sentence(measure, monkeypatch):
    def refuse(*args, **kwargs):
        raise ValueError('no form in ONNX')

    monkeypatch.setattr(measure.module.apis, 'export_onnx', refuse)
    with pytest.raises(SystemExit, match='no form in ONNX'):
        measure.module.main(WORDS)
    assert not (measure.folder / 'results').exists()


def test_files_of_a_tiny_detector_are_timed(tmp_path, monkeypatch):
    module = script('measure_speed', tmp_path / 'results', monkeypatch)
    plain = dict(type='DetDataPreprocessor', mean=[0.0] * 3, std=[1.0] * 3)
    model = zoo_settings('retinanet', {'': {'data_preprocessor': plain}})
    config = tmp_path / 'config.py'
    Config(ConfigDict(model=model, default_scope='mmdet')).dump(config)
    module.main(
        [
            *(str(config), '--name', 'a', '--size', '32', '32'),
            *('--runs', '2', '--threads', '1', '2'),
        ]
    )
    found = json.loads((tmp_path / 'results/a.json').read_text())
    assert list(found['files']) == ['float', 'w8a8_minmax']
    assert found['files']['w8a8_minmax']['integer_layers'] > 10
    assert [run['threads'] for run in found['runs']] == [1, 2]
    assert all(run['load'] >= 0 for run in found['runs'])
    first = found['runs'][0]['timings'][0]
    assert first['cpu_ratio'] == 1.0


@pytest.mark.parametrize(
    ('target', 'name'),
    [('onnxruntime', 'quantize_static'), ('openvino', 'nncf')],
)
def test_the_tool_of_the_runtime_gets_the_float_file(
    tmp_path, monkeypatch, target, name
):
    module = script('measure_speed', tmp_path / 'results', monkeypatch)
    given = []

    def quantize(source, path, *, inputs, method):
        given.append((source.read_bytes(), tuple(inputs[0][0].shape), method))
        path.write_bytes(b'123')

    def write(args, model, data, *, path, **options):
        path.write_bytes(b'q' if options['quantized'] else b'f')
        return {}

    known, _, method = module.PEERS[target]
    monkeypatch.setitem(module.PEERS, target, (known, quantize, method))
    monkeypatch.setattr(module, 'write', write)
    monkeypatch.setattr(module, 'build', lambda args, data: object())
    monkeypatch.setattr(module.taskptq, 'quantize', lambda *a, **k: None)
    args = module.parse_args(
        [
            *('c.py', '--name', 'a', '--size', '32', '48'),
            *('--target', target, '--peer', '--gate-limit', '24', '99'),
        ]
    )
    files = module.write_all(args, folder=tmp_path)
    assert files[name] == {'file_bytes': 3}
    assert 'w8a8_minmax_gates24' in files
    assert given == [(b'f', (2, 3, 32, 48), method)]
