"""Projects, found by their entry points."""

import sys
from importlib import metadata

import pytest

from taskptq.cli import projects


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install packages of one file each, as entry points see them."""
    monkeypatch.syspath_prepend(tmp_path)
    entries = []

    def install(name, source):
        folder = tmp_path / name
        (folder / 'recipes').mkdir(parents=True)
        (folder / '__init__.py').write_text(source)
        entries.append(
            metadata.EntryPoint(name=name, value=name, group=projects.GROUP)
        )

    monkeypatch.setattr(
        projects.metadata,
        'entry_points',
        lambda *, group: [e for e in entries if e.group == group],
    )
    yield install
    for entry in entries:
        sys.modules.pop(entry.name, None)


def test_every_project_is_imported(install, capsys):
    install('zebra_project', 'MARK = 1')
    install('apple_project', 'MARK = 2')
    assert projects.load_projects() == ['apple_project', 'zebra_project']
    assert sys.modules['zebra_project'].MARK == 1
    assert capsys.readouterr().err == ''


@pytest.mark.parametrize(
    ('source', 'reason'),
    [
        ('import no_such_package', "ModuleNotFoundError: No module named 'no"),
        ('raise RuntimeError("old mmdet\\nsecond line")', 'old mmdet)'),
        ('1 / 0', 'ZeroDivisionError'),
    ],
)
def test_a_failure_is_a_line(install, capsys, source, reason):
    install('broken_project', source)
    install('sound_project', '')
    assert projects.load_projects() == ['sound_project']
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert 'broken_project' in lines[0]
    assert reason in lines[0]


def test_folders_of_recipes_are_found_without_an_import(install, tmp_path):
    install('lazy_project', 'raise AssertionError')
    found = list(projects.recipe_folders())
    assert found == [('lazy_project', tmp_path / 'lazy_project' / 'recipes')]
    assert 'lazy_project' not in sys.modules


def test_a_project_without_recipes_or_package(install, tmp_path):
    install('plain_project', '')
    (tmp_path / 'plain_project' / 'recipes').rmdir()
    install('gone_project', '')
    for path in sorted((tmp_path / 'gone_project').rglob('*'), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (tmp_path / 'gone_project').rmdir()
    assert list(projects.recipe_folders()) == []
