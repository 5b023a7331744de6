import copy
import os
import sys

import pytest
import torch
import warm_python

pytest.importorskip('mmdet')
pytest.importorskip('mmcv.ops')
pytest.importorskip('onnxruntime')

from mmengine.config import Config, ConfigDict
from mmengine.logging import MMLogger
from mmengine.runner import Runner
from runtimes import find_runtime
from tiny_detectors import zoo_settings

from taskptq import apis
from taskptq.cli import export as command
from taskptq.engine import onnx_export
from taskptq.engine.onnx_export import fits
from taskptq.engine.onnx_inputs import random_batch
from taskptq.engine.onnx_metadata import read_metadata
from taskptq.engine.raw_outputs import image_axes, make_part
from taskptq.export.runtime import Session, read_onnx

PLAIN = dict(type='DetDataPreprocessor', mean=[0.0] * 3, std=[1.0] * 3)


@pytest.fixture
def task(registry_guard, monkeypatch, repo_root, tmp_path):
    """Config and float checkpoint of a tiny detector on drawn boxes."""
    from mmengine.registry import DefaultScope

    scopes = dict(DefaultScope._instance_dict)
    monkeypatch.syspath_prepend(str(repo_root / 'tests' / 'tiny_task'))
    sys.modules.pop('tiny_detr', None)
    import tiny_detr

    def make(name):
        if hasattr(tiny_detr, name):
            model = getattr(tiny_detr, name)()
        else:
            changes = {'data_preprocessor': PLAIN}
            model = zoo_settings(name, {'': changes})
        config = Config(ConfigDict(copy.deepcopy(tiny_detr.config(model))))
        config.work_dir = str(tmp_path / 'work')
        path = tmp_path / 'float.pth'
        torch.manual_seed(0)
        state = apis.build_model(config).state_dict()
        torch.save({'state_dict': state}, path)
        return config, path

    yield make
    sys.modules.pop('tiny_detr', None)
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(scopes)


def evaluate(config, checkpoint, name, *, hook=True):
    """Metric of a runner, and the boxes that it predicted."""
    config = copy.deepcopy(config)
    config.load_from = str(checkpoint)
    config.experiment_name = f'{name}_{checkpoint.parent.parent.name}'
    if hook:
        config.custom_hooks = [dict(type='taskptq.PTQHook')]
    runner = Runner.from_cfg(config)
    runner.test()
    metric = type(runner.test_loop.evaluator.metrics[0])
    return metric.predictions


# A process without any other runtime, whose end has a message.
APART = """
import faulthandler
faulthandler.enable()
import sys
import torch
import tiny_detr
from mmengine.config import Config
from mmengine.runner import Runner
runner = Runner.from_cfg(Config.fromfile(sys.argv[1]))
runner.test()
metric = type(runner.test_loop.evaluator.metrics[0])
torch.save(metric.predictions, sys.argv[2])
"""


def evaluate_apart(config, checkpoint, folder, *, repo_root):
    """What :func:`evaluate` returns, from a process of its own."""
    config = copy.deepcopy(config)
    config.load_from = str(checkpoint)
    config.custom_hooks = [dict(type='taskptq.PTQHook')]
    config.dump(folder / 'apart.py')
    tiny = str(repo_root / 'tests' / 'tiny_task')
    found = warm_python.run(
        ['-c', APART, folder / 'apart.py', folder / 'found.pth'],
        cwd=repo_root,
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(['.', tiny])},
    )
    assert found.returncode == 0, f'{found.returncode}: {found.stderr}'
    return torch.load(folder / 'found.pth')


@pytest.mark.parametrize('name', ['detr', 'faster'])
def test_the_host_evaluates_a_file(task, tmp_path, name):
    config, checkpoint = task(name)
    out = tmp_path / 'out' / 'm.onnx'
    out.parent.mkdir()
    reports = apis.export_onnx(
        config, checkpoint, out=out, float_model=True, num_images=2
    )
    expected = evaluate(config, checkpoint, f'{name}_float', hook=False)
    found = evaluate(config, out, f'{name}_onnx')
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
    meta = read_metadata(read_onnx(out))
    assert meta.recipe == 'float'
    assert meta.input_size == [32, 48]
    assert meta.classes == ['a', 'b', 'c']
    assert len(reports) == len(meta.parts) == (2 if name == 'faster' else 1)


def test_the_host_evaluates_a_file_in_openvino(task, tmp_path, repo_root):
    find_runtime('openvino')
    config, checkpoint = task('faster')
    out = tmp_path / 'out' / 'm.onnx'
    out.parent.mkdir()
    apis.export_onnx(
        config, checkpoint, out=out, float_model=True, num_images=2
    )
    expected = evaluate(config, checkpoint, 'openvino_float', hook=False)
    config.runtime = 'openvino'
    found = evaluate_apart(config, out, tmp_path, repo_root=repo_root)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)


def test_a_quantized_file_is_exported(task, tmp_path):
    config, checkpoint = task('retinanet')
    q = tmp_path / 'q.pth'
    apis.quantize(
        config,
        checkpoint,
        recipe='w8a8_minmax',
        calibration={'num_images': 4},
        out=q,
        device='cpu',
    )
    out = tmp_path / 'out' / 'm.onnx'
    out.parent.mkdir()
    (report,) = apis.export_onnx(config, q, out=out, num_images=2)
    assert report.num_weights > 10
    meta = read_metadata(read_onnx(out))
    assert meta.recipe == 'w8a8_minmax'
    assert meta.decoding['kind'] == 'anchors'
    expected = evaluate(config, q, 'retina_q')
    found = evaluate(config, out, 'retina_onnx')
    assert found.shape == expected.shape


@pytest.mark.parametrize(
    ('source', 'options', 'message'),
    [
        ('float', {}, 'is a float checkpoint: quantize it first'),
        ('float', {'float_model': True, 'num_images': 0}, 'cannot know their'),
        ('onnx', {}, 'is an exported file already'),
    ],
)
def test_what_cannot_be_exported(task, tmp_path, source, options, message):
    config, checkpoint = task('retinanet')
    if source == 'onnx':
        checkpoint = checkpoint.with_suffix('.onnx')
        checkpoint.write_bytes(b'x')
    with pytest.raises(ValueError, match=message):
        apis.export_onnx(
            config, checkpoint, out=tmp_path / 'm.onnx', **options
        )
    assert not (tmp_path / 'm.onnx').exists() or source == 'onnx'


def test_only_inputs_that_a_file_takes_calibrate_it():
    part = make_part(
        'main',
        lambda x: {'y': x},
        modules={},
        inputs={'x': torch.zeros(2, 3, 4, 4)},
        axes={'x': image_axes(dynamic=False)},
    )
    assert fits(part, [torch.zeros(5, 3, 4, 4)])
    assert not fits(part, [torch.zeros(2, 3, 4, 8)])


def test_a_free_size_and_an_export_without_data(task, tmp_path):
    config, checkpoint = task('retinanet')
    out = tmp_path / 'm.onnx'
    options = dict(out=out, float_model=True, num_images=0, dynamic=True)
    apis.export_onnx(config, checkpoint, size=(64, 96), **options)
    assert read_metadata(read_onnx(out)).input_size is None
    session = Session(read_onnx(out), threads=1)
    found = session(torch.zeros(1, 3, 128, 64))
    assert found['cls_scores.0'].shape[-2:] == (16, 8)


@pytest.fixture
def mixed_sizes(monkeypatch):
    """Let images come in two sizes."""

    def change(*sizes):
        def preprocessed(model, batch):
            return random_batch(sizes[int(batch)])

        monkeypatch.setattr(onnx_export, 'preprocessed', preprocessed)
        monkeypatch.setattr(
            apis, 'build_calibration', lambda *a, **k: range(len(sizes))
        )

    return change


@pytest.mark.parametrize(
    ('sizes', 'options', 'expected'),
    [
        ([(64, 96), (96, 64)], {}, None),
        ([(64, 96), (64, 96)], {}, [64, 96]),
        ([(64, 96), (96, 64)], {'dynamic': False}, [64, 96]),
        ([(64, 96), (96, 64)], {'size': (64, 64)}, [64, 64]),
    ],
)
def test_sizes_are_free_if_images_have_several(
    task, tmp_path, mixed_sizes, sizes, options, expected
):
    config, checkpoint = task('retinanet')
    mixed_sizes(*sizes)
    out = tmp_path / 'm.onnx'
    apis.export_onnx(
        config, checkpoint, out=out, float_model=True, num_images=2, **options
    )
    assert read_metadata(read_onnx(out)).input_size == expected


def test_noise_calibrates_nothing(task, tmp_path, monkeypatch):
    config, checkpoint = task('retinanet')
    q = tmp_path / 'q.pth'
    apis.quantize(
        config,
        checkpoint,
        recipe='w8a8_minmax',
        calibration={'num_images': 2},
        out=q,
        device='cpu',
    )
    seen = []
    inner = onnx_export.export_parts

    def export_parts(*args, **options):
        seen.append(options['calibration'])
        return inner(*args, **options)

    monkeypatch.setattr(onnx_export, 'export_parts', export_parts)
    out = tmp_path / 'm.onnx'
    apis.export_onnx(config, q, out=out, num_images=0, size=(64, 64))
    assert seen == [[]]


def test_a_size_that_cannot_be_free_is_fixed(
    task, tmp_path, mixed_sizes, monkeypatch
):
    from mmdet.models.detectors import SingleStageDetector

    inner = SingleStageDetector.extract_feat

    def extract_feat(self, images):
        return inner(self, images + len(images[0, 0]))

    monkeypatch.setattr(SingleStageDetector, 'extract_feat', extract_feat)
    config, checkpoint = task('retinanet')
    mixed_sizes((64, 96), (96, 64))
    out = tmp_path / 'm.onnx'
    warned = []
    logger = MMLogger.get_current_instance()
    monkeypatch.setattr(logger, 'warning', warned.append)
    apis.export_onnx(
        config, checkpoint, out=out, float_model=True, num_images=2
    )
    assert read_metadata(read_onnx(out)).input_size == [64, 96]
    assert 'takes 64x96, and no others' in warned[0]


def test_another_file_is_refused_before_the_work(task, tmp_path):
    config, checkpoint = task('retinanet')
    out = tmp_path / 'out' / 'm.onnx'
    out.parent.mkdir()
    apis.export_onnx(
        config, checkpoint, out=out, float_model=True, num_images=2
    )
    other, _ = task('detr')
    with pytest.raises(ValueError, match='is of a RetinaNet, but the config'):
        evaluate(other, out, 'other')


def test_images_of_another_size_are_refused(task, tmp_path):
    config, checkpoint = task('retinanet')
    out = tmp_path / 'out' / 'm.onnx'
    out.parent.mkdir()
    apis.export_onnx(
        config,
        checkpoint,
        out=out,
        float_model=True,
        num_images=0,
        size=(64, 64),
    )
    with pytest.raises(ValueError, match=r'of \?x3x64x64, but it is'):
        evaluate(config, out, 'size')


def test_the_command(task, tmp_path, capsys):
    config, checkpoint = task('retinanet')
    path, out = tmp_path / 'config.py', tmp_path / 'm.onnx'
    config.custom_imports = dict(imports=['tiny_detr'])
    config.dump(path)
    options = [str(path), str(checkpoint), '--out', str(out)]
    command.main(
        [*options, '--float', '--num-images', '0', '--size', '64', '96']
    )
    assert str(out) in capsys.readouterr().out
    assert read_metadata(read_onnx(out)).config == 'config'
    with pytest.raises(SystemExit, match='quantize it first'):
        command.main(options)
    with pytest.raises(SystemExit, match='2'):
        command.main([*options[:2], '--out', 'm.pth'])
