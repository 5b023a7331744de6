import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import warm_python

from sam_detector import scale
from sam_detector.sam import SAM_SIZES, SAMSize

PROJECT = Path(__file__).resolve().parents[1]
ROOT = PROJECT.parents[1]
QDROP = 'sam_detector::w8a8_qdrop'
FOUND = {
    'steps': 20,
    'num_images': 2,
    'reconstruction_seconds': 70.0,
    'calibration_seconds': 6.0,
    'forward_seconds': 1.5,
    'num_forwards': 1.0,
    'peak_bytes': 3 * 2**30,
    'units': [
        {'name': 'a', 'seconds': 20.0, 'loss_start': 0.5, 'loss_end': 0.25},
        {'name': 'b', 'seconds': 30.0, 'loss_start': 0.5, 'loss_end': 0.25},
    ],
}


@pytest.fixture
def micro(sam_config, monkeypatch):
    """A size that is measured in a moment."""
    settings = {
        key: value
        for key, value in sam_config.items()
        if key not in ('type', 'size')
    }
    monkeypatch.setitem(
        SAM_SIZES,
        'micro',
        SAMSize(**{**settings, 'depth': 1, 'global_blocks': (0,)}),
    )


def parse(*words):
    return scale.parse_args(['--recipe', QDROP, *words])


def test_arguments():
    args = parse()
    assert (args.size, args.num_images, args.steps) == ('vit_b', 2, 20)
    assert tuple(args.project) == (32, 2000)
    args = parse('--size', 'tiny', '--project', '8', '100', '--boxes', '3')
    assert (args.size, args.project, args.boxes) == ('tiny', [8, 100], 3)


@pytest.mark.parametrize(
    'words',
    [
        ['--steps', '0'],
        ['--num-images', '-1'],
        ['--boxes', '0'],
        ['--project', '32', '0'],
        ['--batch-size', '0'],
    ],
)
def test_counts_start_at_one(words, capsys):
    with pytest.raises(SystemExit):
        parse(*words)
    assert (
        f'argument {words[0]}: {words[-1]} must be at least 1'
        in capsys.readouterr().err
    )


def test_projection_by_hand():
    # 50 s of steps, 26 s of the rest.
    assert scale.project(FOUND, images=2, steps=20) == 76.0
    assert scale.project(FOUND, images=2, steps=200) == 500 + 26
    assert scale.project(FOUND, images=32, steps=2000) == 5000 + 26 * 16


def test_text():
    projected = {'images': 32, 'steps': 2000, 'seconds': 5400.0}
    text = scale.lines(FOUND, projected)
    assert text[0].split() == [
        'a',
        '20.0',
        's,',
        'loss',
        '0.5000',
        '->',
        '0.2500',
    ]
    assert 'peak memory: 3.0 GiB' in text
    assert text[-1] == 'projected to 32 images x 2000 steps: 1.50 h'
    text = scale.lines({**FOUND, 'peak_bytes': None}, projected)
    assert 'peak memory: unknown here' in text


def test_noise_follows_the_seed():
    first, again, other = (
        scale.noise_batch(seed, image_size=64, boxes=50) for seed in (1, 1, 2)
    )
    images = [batch['inputs']['sam'][0] for batch in (first, again, other)]
    assert images[0].shape == (1, 3, 64, 64)
    assert images[0].dtype == torch.uint8
    assert torch.equal(images[0], images[1])
    assert not torch.equal(images[0], images[2])
    boxes = first['data_samples'][0].gt_instances.bboxes
    assert torch.equal(boxes, again['data_samples'][0].gt_instances.bboxes)
    assert boxes.shape == (50, 4)
    assert boxes.min() >= 0
    assert boxes.max() <= 64
    sides = boxes[:, 2:] - boxes[:, :2]
    assert sides.min() >= 0.05 * 64 - 1e-3
    assert sides.max() <= 0.3 * 64 + 1e-3


def test_the_recipe_is_shortened():
    recipe = {
        'reconstruction': {
            'steps': 2000,
            'batch_size': 8,
            'scope': 'layer',
            'patience': 5,
            'drop_prob': 0.25,
            'loss': {'type': 'Other'},
        }
    }
    args = parse('--steps', '3', '--autocast', 'bfloat16')
    found = scale.recipe_of(recipe, args)
    assert (found.steps, found.batch_size, found.skip_below) == (3, 1, 0)
    assert (found.patience, found.autocast) == (None, 'bfloat16')
    assert (found.scope, found.drop_prob) == ('layer', 0.25)
    assert scale.recipe_of({'reconstruction': None}, args).steps == 3


def test_a_small_size_is_measured(micro, tmp_path, capsys):
    out = tmp_path / 'new' / 'scale.json'
    words = [
        '--size',
        'micro',
        '--recipe',
        QDROP,
        '--steps',
        '2',
        '--boxes',
        '3',
        '--project',
        '4',
        '20',
        '--out',
        str(out),
    ]
    result = scale.main(words)
    written = json.loads(out.read_text())
    assert written['command'].endswith(f'--out {out}')
    assert (written['size'], written['weights']) == ('micro', 'random')
    names = [unit['name'] for unit in written['units']]
    assert 'sam.image_encoder.blocks.0' in names
    assert any(name.startswith('sam.mask_decoder.') for name in names)
    assert len(set(names)) == len(names)
    # Units without anything to learn need no step.
    assert {unit['steps'] for unit in written['units']} <= {0, 2}
    assert any(unit['steps'] == 2 for unit in written['units'])
    seconds = sum(unit['seconds'] for unit in written['units'])
    assert 0 < seconds <= written['reconstruction_seconds']
    assert written['projected'] == {
        'images': 4,
        'steps': 20,
        'seconds': pytest.approx(scale.project(result, images=4, steps=20)),
    }
    assert written['peak_bytes'] > 2**20
    shown = capsys.readouterr().out
    assert 'projected to 4 images x 20 steps' in shown
    assert shown.count('peak memory') == 1
    assert f'written to {out}' in shown


def test_one_block_alone(micro):
    words = ['--size', 'micro', '--steps', '2', '--boxes', '2']
    name = 'sam.image_encoder.blocks.0'
    found = scale.measure(parse(*words, '--block', name))
    assert [unit['name'] for unit in found['units']] == [name]
    assert found['blocks'] == [name]
    assert 0 < found['units'][0]['seconds'] < found['reconstruction_seconds']
    with pytest.raises(ValueError, match=r'as sam\.image_encoder\.blocks\.0'):
        scale.measure(parse(*words, '--block', 'sam.image_encoder.blocks.7'))


def test_a_recipe_without_qconfig_is_refused(tmp_path):
    path = tmp_path / 'q.py'
    path.write_text('reconstruction = None\n')
    with pytest.raises(ValueError, match='recipe sets no qconfig'):
        scale.measure(scale.parse_args(['--recipe', str(path)]))


def test_peak_memory_without_the_kernels_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, 'STATUS', tmp_path / 'none')
    resource = pytest.importorskip('resource')
    unit = 1 if sys.platform == 'darwin' else 1024
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    assert scale.peak_bytes('cpu') >= before > 2**20
    status = tmp_path / 'status'
    status.write_text('Name:\tpython\nVmHWM:\t    2048 kB\n')
    monkeypatch.setattr(scale, 'STATUS', status)
    assert scale.peak_bytes('cpu') == 2**21
    monkeypatch.setattr(scale, 'STATUS', tmp_path / 'none')
    monkeypatch.setitem(sys.modules, 'resource', None)
    assert scale.peak_bytes('cpu') is None


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason='needs a CUDA device'
)
def test_peak_memory_of_a_gpu():
    torch.cuda.reset_peak_memory_stats()
    kept = torch.zeros(2**22, device='cuda')
    assert scale.peak_bytes('cuda') >= kept.numel() * 4
    assert scale.peak_bytes('cuda:0') == scale.peak_bytes('cuda')


def test_commit_of_a_tree(tmp_path, monkeypatch):
    if shutil.which('git') is None:
        pytest.skip('needs git')
    source = tmp_path / 'scale.py'
    source.write_text('')
    monkeypatch.setattr(scale, '__file__', str(source))

    def git(*words):
        return subprocess.run(
            ['git', '-c', 'user.name=a', '-c', 'user.email=a@b', *words],
            cwd=tmp_path,
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    for name in ('GIT_DIR', 'GIT_WORK_TREE', 'GIT_INDEX_FILE'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('GIT_CEILING_DIRECTORIES', str(tmp_path.parent))
    assert scale.commit() is None  # no repository
    git('init')
    assert scale.commit() is None  # one without this file
    git('add', 'scale.py')
    assert scale.commit() is None  # and without a commit
    git('commit', '-m', 'first')
    assert scale.commit() == git('rev-parse', 'HEAD').strip()
    monkeypatch.setenv('PATH', str(tmp_path))
    assert scale.commit() is None  # no git


@pytest.mark.slow
def test_runs_as_a_module(tmp_path):
    path = os.pathsep.join([str(PROJECT), str(ROOT)])
    done = warm_python.run(
        ['-m', 'sam_detector.scale', '--help'],
        env=dict(os.environ, PYTHONPATH=path),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert '--project IMAGES STEPS' in done.stdout
