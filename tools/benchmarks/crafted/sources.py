"""Make the good files, from a small detector and a small segmentor."""

from __future__ import annotations

import runpy
import shutil
import sys
from pathlib import Path

import torch

from .case import MODULE, Good

__all__ = ['HOSTS', 'make_good', 'write_configs', 'write_module']

HOSTS = {
    'mmdet': (
        'configs/retinanet/retinanet_r18-half_fpn_bccd.py',
        'configs/retinanet/checkpoints/retinanet_r18-half_fpn_bccd.pth',
    ),
    'mmseg': (
        'configs/segformer/segformer_mit-tiny_camvid.py',
        'configs/segformer/checkpoints/segformer_mit-tiny_camvid.pth',
    ),
}
QCONFIG = """dict(
    weight=dict(type={kind!r}, num_bits=2, symmetric=False,
                per_channel=True, observer=dict(type='MinMaxObserver')),
    activation=dict(type={kind!r}, num_bits=4, symmetric=False,
                    observer=dict(type='MinMaxObserver')),
    edge_bits=8)"""
LOADER = """dict(
    batch_size=2, num_workers=0, persistent_workers=False,
    dataset=dict(indices=2))"""
# Two images and no averaging, so that a run takes seconds.
CONFIG = """_base_ = [{base!r}]
test_dataloader = {loader}
val_dataloader = {loader}
train_dataloader = {loader}
train_cfg = dict(max_epochs=2, val_interval=100)
param_scheduler = [dict(type='ConstantLR', factor=1.0)]
default_hooks = dict(
    checkpoint=dict(interval=1, max_keep_ckpts=-1))
custom_hooks = [{hook}]
"""
RECONSTRUCTION = """
reconstruction = dict(steps=1, batch_size=2, drop_prob=0.0)
"""


def write_module(folder: Path, marker: Path) -> None:
    """Write the package whose import leaves the marker.

    Args:
        folder: Folder on the import path of the run.
        marker: File that the import creates.
    """
    package = folder / MODULE
    package.mkdir(parents=True, exist_ok=True)
    text = (
        f'import pathlib\n\npathlib.Path({str(marker)!r}).touch()\n\n\n'
        'class Mark:\n    pass\n'
    )
    for name in ('__init__', 'registry'):
        (package / f'{name}.py').write_text(text, encoding='utf-8')


def write_configs(folder: Path, *, root: Path, host: str) -> None:
    """Write the configs and recipes of one host's runs.

    Args:
        folder: Output folder.
        root: Checkout under test.
        host: Key of ``HOSTS``.
    """
    ptq = QCONFIG.format(kind='AffineQuantizer')
    qat = QCONFIG.format(kind='LSQQuantizer')
    images = 'calibration=dict(num_images=2)'
    hooks = {
        'float': '',
        'ptq': f"dict(type='taskptq.PTQHook', qconfig={ptq}, {images})",
        'qat': f"dict(type='taskptq.QATHook', qconfig={qat}, {images})",
        'train': "dict(type='taskptq.PTQHook')",
    }
    base = str(root / HOSTS[host][0])
    for name, hook in hooks.items():
        text = CONFIG.format(base=base, loader=LOADER, hook=hook)
        (folder / f'{name}.py').write_text(text, encoding='utf-8')
    fragment = f'qconfig = {ptq}\n'
    (folder / 'fragment.py').write_text(fragment, encoding='utf-8')
    (folder / 'reconstruct.py').write_text(
        fragment + RECONSTRUCTION, encoding='utf-8'
    )


def make_good(good: Good, name: str, *, root: Path, host: str) -> None:
    """Make one of the good files in a separate process.

    Args:
        good: The good files.
        name: Name of the file to make.
        root: Checkout under test.
        host: Key of ``HOSTS``.
    """
    if name == 'float':
        shutil.copy(root / HOSTS[host][1], good.path('float'))
    elif name == 'quantized':
        _quantize(good, root, 'fragment.py')
    elif name == 'state':
        _keep_states(good, root, good.folder / 'reconstructed')
    else:
        _train(good, root, 'qat' if name == 'training' else 'train')


def _tool(root: Path, name: str, *arguments: object) -> None:
    sys.argv = [name, *map(str, arguments)]
    runpy.run_path(str(root / f'tools/{name}.py'), run_name='__main__')


def _quantize(
    good: Good, root: Path, fragment: str, *, out: Path | None = None
) -> None:
    _tool(
        root,
        'quantize',
        good.folder / 'float.py',
        good.path('float'),
        '--recipe',
        good.folder / fragment,
        '--num-images',
        2,
        '--device',
        'cpu',
        '--out',
        out or good.path('quantized'),
    )


def _train(good: Good, root: Path, name: str) -> None:
    work = good.folder / f'{name}-work'
    _tool(
        root,
        'train',
        good.folder / f'{name}.py',
        '--work-dir',
        work,
        '--cfg-options',
        'train_cfg.max_epochs=1',
        f'load_from={good.path("float")}',
    )
    target = good.path('training' if name == 'qat' else 'epoch')
    shutil.copy(work / 'epoch_1.pth', target)


def _keep_states(good: Good, root: Path, work: Path) -> None:
    """Quantize, and copy the state of each unit before it is removed."""
    from taskptq.reconstruction.resume import UnitStates

    save = UnitStates.save

    def save_and_copy(
        self: UnitStates, *args: object, **kwargs: object
    ) -> None:
        save(self, *args, **kwargs)
        assert self.folder is not None
        target = good.path('state') / self.folder.name
        target.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob('unit_*.pth'):
            shutil.copy(path, target)

    UnitStates.save = save_and_copy
    torch.manual_seed(0)
    _quantize(good, root, 'reconstruct.py', out=work / 'q.pth')
