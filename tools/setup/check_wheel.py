"""Check the wheel as a user gets it: installed, and outside the checkout.

    .venv/bin/python tools/setup/check_wheel.py [--keep DIR]

Builds the wheel and installs it into a new environment that sees the packages
of ``.venv`` except taskptq and the projects. There it runs ``taskptq
quantize``, ``test`` and ``info``, and the hosts' own ``tools/test.py``, on a
model of mmdet and one of mmseg whose data it draws; on committed checkpoints
where ``data/`` has their sets; and ``taskptq.quantize`` on a plain torch model
where mmcv, mmdet and mmseg are not installed. Takes some minutes; it is no
part of ``make test``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
OURS = ('__editable__', 'lane_', 'sam_', 'small_', 'taskptq')
HOSTS = ('mmcv', 'mmdet', 'mmseg', 'onedl_mmcv', 'onedl_mmdet', 'onedl_mmseg')
SOURCES = ('setup.py', 'MANIFEST.in', 'README.md', 'LICENSE', 'taskptq')
DETECTOR = 'mmdet::yolox/yolox_tiny_8xb8-300e_coco.py'
SEGMENTOR = 'mmseg::segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py'
# Committed checkpoints: family, name, data set.
COMMITTED = (
    ('retinanet', 'retinanet_r18-half_fpn_bccd', 'bccd'),
    ('segformer', 'segformer_mit-tiny_camvid', 'camvid'),
)
RANDOM_WEIGHTS = """
import sys, torch
from taskptq.apis import build_model
torch.manual_seed(0)
torch.save({'state_dict': build_model(sys.argv[1]).state_dict()}, sys.argv[2])
"""
PLAIN = """
import importlib.util, taskptq, torch
from torch import nn
for name in ('mmcv', 'mmdet', 'mmseg'):
    assert importlib.util.find_spec(name) is None, name
def make():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
                         nn.Flatten(), nn.Linear(288, 4)).eval()
torch.manual_seed(0)
batches = [torch.randn(4, 3, 8, 8) for _ in range(4)]
model, report = taskptq.quantize(make(), batches, recipe='w4a4_qdrop',
    reconstruction=dict(steps=20), out='plain.pth')
again = taskptq.load_quantized(make(), 'plain.pth')
assert torch.equal(model(batches[0]), again(batches[0]))
assert 'checkout' not in taskptq.__file__
print(taskptq.__file__)
"""


def say(text: str) -> None:
    """Print one line of progress at once."""
    print(f'[wheel] {text}', flush=True)


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command and return its output; show it if it fails.

    Raises:
        SystemExit: If it fails.
    """
    start = time.monotonic()
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    words = ' '.join(str(part) for part in command[:4]).replace('\n', ' ')
    if result.returncode:
        print(result.stdout[-4000:], result.stderr[-4000:], sep='\n')
        raise SystemExit(f'[wheel] FAILED: {words}')
    say(f'{time.monotonic() - start:5.0f} s  {words[:100]}')
    return result.stdout


def build_wheel(folder: Path) -> Path:
    """Build the wheel from a copy of the source."""
    source = folder / 'source'
    for name in (*SOURCES, 'model-index.yml', 'configs'):
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns('__pycache__', '*.pth', '*.png')
            shutil.copytree(ROOT / name, source / name, ignore=ignored)
        else:
            source.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, source / name)
    pip = (sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps')
    run(*pip, '--no-build-isolation', '-w', folder, source, cwd=folder)
    return next(folder.glob('taskptq-*.whl'))


def make_environment(
    folder: Path, wheel: Path, *, without: Sequence[str] = ()
) -> Path:
    """Make an environment with the wheel and the packages of this one.

    Args:
        folder: Where to make it.
        wheel: The wheel.
        without: Starts of the names of packages to leave out.

    Returns:
        Its folder of programs.
    """
    run(sys.executable, '-m', 'venv', '--without-pip', folder, cwd=ROOT)
    programs = folder / 'bin'
    links = folder / 'packages'
    links.mkdir()
    for path in Path(sysconfig.get_path('purelib')).iterdir():
        if not path.name.startswith((*OURS, *without)):
            (links / path.name).symlink_to(path)
    site = next((folder / 'lib').glob('python*')) / 'site-packages'
    (site / 'packages.pth').write_text(f'{links}\n')
    pip = (sys.executable, '-m', 'pip', '--python', programs / 'python')
    run(*pip, 'install', '-q', '--no-deps', wheel, cwd=folder)
    return programs


def draw_image(path: Path, *, seed: int) -> None:
    """Write an image of noise, 96x128."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (96, 128, 3))
    Image.fromarray(noise.astype(np.uint8)).save(path)


def draw_coco(root: Path, *, count: int = 2) -> None:
    """Write data sets in the layout of COCO, one box on each image."""
    from mmdet.datasets import CocoDataset

    for number, split in enumerate(('train2017', 'val2017')):
        images, boxes = [], []
        for i in range(count):
            name = f'{split}_{i}.jpg'
            draw_image(root / split / name, seed=10 * number + i)
            images.append(
                {'id': i, 'file_name': name, 'height': 96, 'width': 128}
            )
            boxes.append(
                {
                    'id': i + 1, 'image_id': i, 'category_id': 1,
                    'bbox': [10, 10, 40, 40], 'area': 1600, 'iscrowd': 0,
                }
            )  # fmt: skip
        content = {
            'images': images,
            'annotations': boxes,
            # All of them: the random model predicts every class.
            'categories': [
                {'id': i + 1, 'name': name}
                for i, name in enumerate(CocoDataset.METAINFO['classes'])
            ],
        }
        path = root / 'annotations' / f'instances_{split}.json'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))


def draw_ade(root: Path, *, count: int = 2) -> None:
    """Write data sets in the layout of ADE20K, of two classes."""
    for number, split in enumerate(('training', 'validation')):
        for i in range(count):
            image = root / 'images' / split / f'{i}.jpg'
            draw_image(image, seed=10 * number + i)
            labels = np.ones((96, 128), np.uint8)
            labels[:, 64:] = 2
            path = root / 'annotations' / split / f'{i}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(labels).save(path)


def check_model(
    programs: Path, work: Path, *, config: str, checkpoint: Path, images: int
) -> None:
    """Quantize a model, test it by two tools, and ask what it is."""
    taskptq, out = programs / 'taskptq', f'{checkpoint.stem}_q'
    output = ('--recipe', 'w8a8', '--out', f'{out}.pth')
    number = ('--num-images', str(images))
    run(taskptq, 'quantize', config, checkpoint, *output, *number, cwd=work)
    files = (f'{out}.py', f'{out}.pth')
    run(taskptq, 'test', *files, '--out', f'{out}.json', cwd=work)
    say(str(json.loads((work / f'{out}.json').read_text())['metrics'])[:150])
    host = config.partition('::')[0]
    if host != 'taskptq':
        package = programs.parent / 'packages' / host
        tool = package / '.mim' / 'tools' / 'test.py'
        run(programs / 'python', tool, *files, cwd=work)
    print(run(taskptq, 'info', f'{out}.pth', cwd=work), end='')


def check_all(folder: Path) -> None:
    """Run every check; see the top of this file."""
    wheel = build_wheel(folder)
    say(f'{wheel.name}: {wheel.stat().st_size:,} bytes')
    programs = make_environment(folder / 'full', wheel)
    work = folder / 'work'
    work.mkdir()
    draw_coco(work / 'data' / 'coco')
    draw_ade(work / 'data' / 'ade' / 'ADEChallengeData2016')
    for config, name in ((DETECTOR, 'detector'), (SEGMENTOR, 'segmentor')):
        path = work / f'{name}.pth'
        python = programs / 'python'
        run(python, '-c', RANDOM_WEIGHTS, config, path, cwd=work)
        check_model(programs, work, config=config, checkpoint=path, images=2)
    for family, name, data in COMMITTED:
        if not (ROOT / 'data' / data).is_dir():
            say(f'skipped {name}: data/{data} is missing (make data-link)')
            continue
        (work / 'data' / data).symlink_to((ROOT / 'data' / data).resolve())
        check_model(
            programs,
            work,
            config=f'taskptq::{family}/{name}.py',
            checkpoint=ROOT / f'configs/{family}/checkpoints/{name}.pth',
            images=16,
        )
    plain = make_environment(folder / 'plain', wheel, without=HOSTS)
    run(plain / 'python', '-c', PLAIN, cwd=work)
    print(run(plain / 'taskptq', 'info', 'plain.pth', cwd=work), end='')
    run(plain / 'taskptq', 'list', 'recipes', cwd=work)
    say('all is well')


def main() -> None:
    """Parse the command line and check, in a folder that is removed."""
    parser = argparse.ArgumentParser(description='Check the wheel')
    parser.add_argument(
        '--keep', type=Path, help='new folder to work in, which is kept'
    )
    args = parser.parse_args()
    if args.keep is not None:
        args.keep.mkdir(parents=True)
        check_all(args.keep.resolve())
        return
    with tempfile.TemporaryDirectory() as folder:
        check_all(Path(folder))


if __name__ == '__main__':
    main()
