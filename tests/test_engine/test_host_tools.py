"""The hosts' own tools/test.py run a quantized file with nothing but q.py."""

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
W4A4 = ROOT / 'configs/_base_/quant/w4a4_minmax.py'
HOSTS = [
    pytest.param('mmdet', 'retinanet/retinanet_r18-half_fpn_bccd.py',
                 'bbox_mAP', marks=pytest.mark.data('bccd')),
    pytest.param('mmseg', 'segformer/segformer_mit-tiny_camvid.py', 'mIoU',
                 marks=pytest.mark.data('camvid')),
]


def quantize(config, work_dir):
    """Write q.pth and q.py of a model with random weights."""
    from taskptq.apis import build_model
    spec = importlib.util.spec_from_file_location(
        'tool_quantize', ROOT / 'tools/quantize.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    checkpoint = work_dir / 'float.pth'
    torch.save(build_model(config).state_dict(), checkpoint)
    tool.main([
        str(config), str(checkpoint), '--quant', str(W4A4), '--num-images',
        '2', '--device', 'cpu', '--out', str(work_dir / 'q.pth')
    ])


@pytest.mark.slow
@pytest.mark.parametrize(('host', 'config', 'metric'), HOSTS)
def test_host_tool(host, config, metric, tmp_path, monkeypatch):
    package = pytest.importorskip(host)
    tool = Path(package.__file__).parent / '.mim/tools/test.py'
    if not tool.is_file():
        pytest.skip(f'{host} was installed without its tools')
    from mmengine.registry import DefaultScope
    scopes = dict(DefaultScope._instance_dict)
    monkeypatch.chdir(ROOT)
    quantize(ROOT / 'configs' / config, tmp_path)
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(scopes)
    done = subprocess.run(
        [sys.executable, str(tool), str(tmp_path / 'q.py'),
         str(tmp_path / 'q.pth'), '--work-dir', str(tmp_path / 'host'),
         '--cfg-options', 'test_dataloader.dataset.indices=2',
         'test_dataloader.num_workers=0',
         'test_dataloader.persistent_workers=False'],
        env=dict(os.environ, PYTHONPATH=str(ROOT)),
        capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    log = done.stdout + done.stderr
    assert 'Rebuilt the quantized model' in log
    # A detector of random weights may well find nothing to score.
    assert metric in log or 'testing results' in log.lower()
