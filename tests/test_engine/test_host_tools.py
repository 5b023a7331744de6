"""The hosts' own tools/test.py run a quantized file with nothing but q.py."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import warm_python

ROOT = Path(__file__).resolve().parents[2]
HOSTS = [
    pytest.param(
        'mmdet',
        'retinanet/retinanet_r18-half_fpn_bccd.py',
        'bbox_mAP',
        marks=pytest.mark.data('bccd'),
    ),
    pytest.param(
        'mmseg',
        'segformer/segformer_mit-tiny_camvid.py',
        'mIoU',
        marks=pytest.mark.data('camvid'),
    ),
]


def quantize(config, work_dir):
    """Write q.pth and q.py of a model with random weights."""
    from taskptq.apis import build_model

    tool = importlib.import_module('taskptq.cli.quantize')
    checkpoint = work_dir / 'float.pth'
    torch.save(build_model(config).state_dict(), checkpoint)
    tool.main(
        [
            str(config),
            str(checkpoint),
            '--recipe',
            'w4a4_minmax',
            '--num-images',
            '2',
            '--device',
            'cpu',
            '--out',
            str(work_dir / 'q.pth'),
        ]
    )


LAZY = """
from mmcv.ops import nms
from mmcv.transforms import LoadImageFromFile, Resize
from mmdet.datasets import CocoDataset
from mmdet.datasets.transforms import PackDetInputs
from mmdet.evaluation import CocoMetric
from mmdet.models import FPN, DetDataPreprocessor, ResNet, RetinaHead
from mmdet.models import RetinaNet
from mmdet.models.losses import FocalLoss, L1Loss
from mmdet.models.task_modules import AnchorGenerator, DeltaXYWHBBoxCoder
from mmengine.dataset import DefaultSampler
from mmengine.runner import TestLoop

default_scope = 'mmdet'
model = dict(
    type=RetinaNet,
    data_preprocessor=dict(type=DetDataPreprocessor, pad_size_divisor=32),
    backbone=dict(type=ResNet, depth=18, base_channels=8, norm_eval=False,
                  norm_cfg=dict(type='BN')),
    neck=dict(type=FPN, in_channels=[8, 16, 32, 64], out_channels=8,
              start_level=1, add_extra_convs='on_input', num_outs=5),
    bbox_head=dict(
        type=RetinaHead, num_classes=3, in_channels=8, feat_channels=8,
        stacked_convs=1,
        anchor_generator=dict(
            type=AnchorGenerator, octave_base_scale=2, scales_per_octave=3,
            ratios=[0.5, 1.0, 2.0], strides=[8, 16, 32, 64, 128]),
        bbox_coder=dict(type=DeltaXYWHBBoxCoder),
        loss_cls=dict(type=FocalLoss, use_sigmoid=True),
        loss_bbox=dict(type=L1Loss)),
    test_cfg=dict(nms_pre=100, min_bbox_size=0, score_thr=0.0,
                  nms=dict(type=nms, iou_threshold=0.5), max_per_img=10))
data = dict(
    type=CocoDataset, metainfo=dict(classes=('RBC', 'WBC', 'Platelets')),
    data_root='DATA/', data_prefix=dict(img='images/'), indices=2,
    test_mode=True,
    pipeline=[dict(type=LoadImageFromFile),
              dict(type=Resize, scale=(160, 120), keep_ratio=True),
              dict(type=PackDetInputs)])
loader = dict(batch_size=1, num_workers=0, persistent_workers=False)
test_dataloader = dict(
    **loader, sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(**data, ann_file='test.json'))
train_dataloader = dict(
    **loader, sampler=dict(type=DefaultSampler, shuffle=True),
    dataset=dict(**data, ann_file='train.json'))
test_evaluator = dict(
    type=CocoMetric, ann_file='DATA/test.json', metric='bbox')
test_cfg = dict(type=TestLoop)
train_cfg = dict(by_epoch=True, max_epochs=1)
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1))
"""


@pytest.fixture
def fresh_scope(monkeypatch):
    """Run from the repository; leave the default scope as it was."""
    from mmengine.registry import DefaultScope

    scopes = dict(DefaultScope._instance_dict)
    monkeypatch.chdir(ROOT)
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(scopes)


def host_tool(host):
    package = pytest.importorskip(host)
    tool = Path(package.__file__).parent / '.mim/tools/test.py'
    if not tool.is_file():
        pytest.skip(f'{host} was installed without its tools')
    return tool


def run(tool, *arguments, cwd=ROOT, warm=True):
    """Run a tool; ``warm``: where torch, but no host, is imported."""
    words = [str(tool), *map(str, arguments)]
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    if warm:
        return warm_python.run(words, cwd=cwd, env=environment)
    return subprocess.run(
        [sys.executable, *words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize(('host', 'config', 'metric'), HOSTS)
def test_host_tool(host, config, metric, tmp_path, fresh_scope):
    tool = host_tool(host)
    quantize(ROOT / 'configs' / config, tmp_path)
    done = run(
        tool,
        tmp_path / 'q.py',
        tmp_path / 'q.pth',
        '--work-dir',
        tmp_path / 'host',
        '--cfg-options',
        'test_dataloader.dataset.indices=2',
        'test_dataloader.num_workers=0',
        'test_dataloader.persistent_workers=False',
        warm=host != 'mmdet',
    )
    assert done.returncode == 0, done.stderr[-2000:]
    log = done.stdout + done.stderr
    assert 'Rebuilt the quantized model' in log
    # A detector of random weights may well find nothing to score.
    assert metric in log or 'testing results' in log.lower()


@pytest.mark.slow
@pytest.mark.parametrize(('host', 'config', 'metric'), HOSTS)
def test_host_tool_on_an_exported_file(
    host, config, metric, tmp_path, fresh_scope
):
    pytest.importorskip('onnxruntime')
    from taskptq.apis import build_model, export_onnx

    tool, path = host_tool(host), ROOT / 'configs' / config
    torch.save(build_model(path).state_dict(), tmp_path / 'float.pth')
    out = tmp_path / 'model.onnx'
    export_onnx(
        path,
        tmp_path / 'float.pth',
        out=out,
        float_model=True,
        num_images=2,
    )
    hooked = tmp_path / 'hooked.py'
    hooked.write_text(
        f"_base_ = ['{path}']\ncustom_hooks = [dict(type='taskptq.PTQHook')]\n"
    )
    options = [
        '--work-dir',
        tmp_path / 'host',
        '--cfg-options',
        'test_dataloader.dataset.indices=2',
        'test_dataloader.num_workers=0',
        'test_dataloader.persistent_workers=False',
    ]
    done = run(tool, hooked, out, *options)
    assert done.returncode == 0, done.stderr[-2000:]
    log = done.stdout + done.stderr
    assert 'runs in the place of the network' in log
    assert metric in log or 'testing results' in log.lower()
    if host != 'mmdet':
        return  # as the other host, for what follows
    out.write_bytes(b'not a model')
    done = run(tool, hooked, out, *options)
    assert done.returncode != 0
    assert 'damaged or not an ONNX file' in done.stderr


@pytest.mark.slow
@pytest.mark.data('bccd')
def test_host_tool_on_an_import_style_config(tmp_path, fresh_scope):
    tool = host_tool('mmdet')
    config = tmp_path / 'lazy.py'
    config.write_text(LAZY.replace('DATA', str(ROOT / 'data/bccd')))
    quantize(config, tmp_path)
    moved = tmp_path / 'moved'
    moved.mkdir()
    for name in ('q.py', 'q.pth'):
        (tmp_path / name).rename(moved / name)
    config.unlink()
    done = run(tool, 'q.py', 'q.pth', cwd=moved)
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'Rebuilt the quantized model' in done.stdout + done.stderr


class Touch:
    """Pickles as a call that leaves a mark."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return type(self.mark).touch, (self.mark,)


@pytest.mark.slow
@pytest.mark.data('bccd')
def test_host_tool_runs_no_code_of_a_file(tmp_path, fresh_scope):
    tool = host_tool('mmdet')
    config = tmp_path / 'config.py'
    base = ROOT / 'configs/retinanet/retinanet_r18-half_fpn_bccd.py'
    config.write_text(
        f'_base_ = [{base.as_posix()!r}]\n'
        "custom_hooks = [dict(type='taskptq.PTQHook', qconfig=dict())]\n"
    )
    mark, bad = tmp_path / 'ran', tmp_path / 'bad.pth'
    torch.save({'state_dict': {}, 'meta': Touch(mark)}, bad)
    done = run(tool, config, bad, '--work-dir', tmp_path / 'host')
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert 'trust_checkpoint=True' in last, done.stderr[-2000:]
    assert not mark.exists()
