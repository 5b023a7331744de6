"""What the wheel carries: built from the files that git would ship."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import pytest
import yaml

from taskptq.recipes import folders

ROOT = Path(__file__).resolve().parents[1]
TREES = ('taskptq', 'configs')
FILES = ('setup.py', 'MANIFEST.in', 'README.md', 'LICENSE', 'model-index.yml')
MAX_BYTES = 2 << 20


def copy_source(target):
    """Copy what a build reads, and all that it must leave out."""
    for name in TREES:
        shutil.copytree(
            ROOT / name,
            target / name,
            ignore=shutil.ignore_patterns('__pycache__', '*.pth'),
        )
    for name in FILES:
        shutil.copyfile(ROOT / name, target / name)
    # Stands for the megabytes of the real ones.
    left_out = target / 'configs' / 'retinanet' / 'checkpoints'
    left_out.mkdir(parents=True, exist_ok=True)
    (left_out / 'float.pth').write_bytes(b'0')


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    source = tmp_path_factory.mktemp('source')
    copy_source(source)
    # An older build of a module that is gone.
    stale = source / 'build' / 'lib' / 'taskptq' / 'renamed_long_ago.py'
    stale.parent.mkdir(parents=True)
    stale.write_text('')
    folder = tmp_path_factory.mktemp('wheel')
    command = [sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps']
    subprocess.run(
        [*command, '--no-build-isolation', '-w', folder, source], check=True
    )
    return next(folder.glob('taskptq-*.whl'))


@pytest.fixture(scope='module')
def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_every_module_and_recipe_is_there(names):
    expected = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / 'taskptq').rglob('*.py')
    }
    found = {
        name
        for name in names
        if name.startswith('taskptq/') and '/.mim/' not in name
    }
    assert expected <= found
    recipes = {
        f'taskptq/recipes/{path.name}'
        for path in folders._FOLDERS[folders.OWN].glob('*.py')
    }
    assert recipes <= found
    assert any('-' in name for name in recipes)
    assert any('+' in name for name in recipes)
    templates = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / 'taskptq/analysis/page/templates').iterdir()
    }
    assert len(templates) > 8
    assert found - expected == {'taskptq/py.typed', *templates}


def test_configs_are_where_mim_looks(names):
    expected = {
        f'taskptq/.mim/{path.relative_to(ROOT).as_posix()}'
        for pattern in ('*.py', 'metafile.yml')
        for path in (ROOT / 'configs').rglob(pattern)
    }
    found = {name for name in names if '/.mim/' in name}
    assert found == expected | {'taskptq/.mim/model-index.yml'}


def test_nothing_else_is_there(names):
    suffixes = {
        PurePosixPath(name).suffix
        for name in names
        if name.startswith('taskptq/')
    }
    assert suffixes == {'.py', '.yml', '.typed', '.html', '.css', '.js'}
    others = {name.partition('/')[0] for name in names}
    assert others == {'taskptq', f'{_dist_info(names)}'}


def _dist_info(names):
    return next(n.partition('/')[0] for n in names if '.dist-info/' in n)


def test_it_is_small(wheel):
    assert wheel.stat().st_size < MAX_BYTES


def test_the_index_names_shipped_files_alone(wheel, names):
    with zipfile.ZipFile(wheel) as archive:
        text = archive.read('taskptq/.mim/model-index.yml')
    found = yaml.safe_load(text)['Import']
    assert found
    assert all(f'taskptq/.mim/{name}' in names for name in found)


def test_the_command_is_installed(wheel, names):
    with zipfile.ZipFile(wheel) as archive:
        info = _dist_info(names)
        entries = archive.read(f'{info}/entry_points.txt').decode()
        about = archive.read(f'{info}/METADATA').decode()
    assert 'taskptq = taskptq.cli.main:main' in entries
    extras = {
        line.partition(': ')[2]
        for line in about.splitlines()
        if line.startswith('Provides-Extra')
    }
    assert extras == {
        'compress',
        'mixed',
        'mm',
        'onnx',
        'openvino',
        'report',
        'robustness',
        'sam',
    }
    required = [
        line.partition(': ')[2]
        for line in about.splitlines()
        if line.startswith('Requires-Dist') and 'extra ==' not in line
    ]
    # Two distributions provide mmengine: naming one would break the other.
    assert not [line for line in required if 'mm' in line]
