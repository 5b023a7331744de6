"""``taskptq list``."""

from types import SimpleNamespace

import pytest

from taskptq.cli import list as module
from taskptq.recipes import folders, method_names, resolve


@pytest.fixture(autouse=True)
def known(monkeypatch):
    """Leave the registered folders as they were."""
    monkeypatch.setattr(folders, '_FOLDERS', dict(folders._FOLDERS))


@pytest.fixture
def lines(capsys):
    def run(*arguments):
        module.main(list(arguments))
        return capsys.readouterr().out.splitlines()

    return run


def test_every_recipe_has_a_line_that_says_what_it_is(lines):
    rows = [line.split(maxsplit=2) for line in lines('recipes')]
    own = {row[1]: row[2] for row in rows if row and row[0] == 'taskptq'}
    assert list(own) == method_names()
    assert own['qdrop'] == 'QDrop (Wei et al., ICLR 2022).'
    assert resolve(f'w4a4_{next(iter(own))}')


def test_recipes_of_a_project_that_is_not_imported(
    lines, tmp_path, monkeypatch
):
    (tmp_path / 'mine.py').write_text('"""My method."""\nbase = \'mse\'\n')
    monkeypatch.setattr(
        module, 'recipe_folders', lambda: [('lanes', tmp_path)]
    )
    rows = [line.split(maxsplit=2) for line in lines('recipes')]
    assert ['lanes', 'mine', 'My method.'] in rows


@pytest.mark.parametrize(
    ('kind', 'name'),
    [
        ('observers', 'MSEObserver'),
        ('quantizers', 'LSQQuantizer'),
        ('losses', 'MSEReconLoss'),
        ('rewrites', 'AttentionCentering'),
    ],
)
def test_classes_with_a_line_each(lines, kind, name):
    found = dict(line.split(maxsplit=1) for line in lines(kind))
    assert name in found
    assert all(text.endswith('.') for text in found.values())


def test_configs_by_the_name_that_commands_take(lines):
    found = lines('configs')
    assert 'taskptq::retinanet/retinanet_r18-half_fpn_bccd.py' in found
    assert not [name for name in found if '_base_' in name]


def test_configs_of_another_package(lines):
    pytest.importorskip('mmdet')
    name = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
    assert name in lines('configs', 'mmdet')


@pytest.mark.parametrize(
    ('package', 'reason'),
    [('mmfoo', 'is not installed'), ('json', 'has no configs')],
)
def test_a_package_without_configs(package, reason):
    with pytest.raises(SystemExit, match=f"'{package}' {reason}"):
        module.main(['configs', package])


def test_only_configs_have_packages(capsys):
    with pytest.raises(SystemExit):
        module.main(['recipes', 'mmdet'])
    assert 'recipes takes no package' in capsys.readouterr().err


def test_projects(lines, monkeypatch):
    about = SimpleNamespace(
        metadata={'Version': '1.2', 'Summary': 'Lane detectors'}
    )
    entry = SimpleNamespace(name='lanes', dist=about)
    monkeypatch.setattr(module, 'installed_projects', lambda: [entry])
    assert lines('projects')[0] == 'lanes  1.2  Lane detectors'
