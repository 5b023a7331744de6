"""The commit of the checkout that taskptq runs from."""

import subprocess
from types import SimpleNamespace

import pytest

from taskptq.engine import commit
from taskptq.engine.commit import source_commit


def git(folder, *words):
    own = ['-c', 'user.name=a', '-c', 'user.email=a@b.c']
    done = subprocess.run(
        ['git', *own, '-C', folder, *words],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A repository with a package, which takes taskptq's place."""
    package = tmp_path / 'taskptq'
    package.mkdir()
    (package / '__init__.py').write_text('')
    git(tmp_path, 'init', '-q')
    git(tmp_path, 'add', '.')
    git(tmp_path, 'commit', '-q', '-m', 'One')
    fake = SimpleNamespace(__file__=str(package / '__init__.py'))
    monkeypatch.setattr(commit, 'taskptq', fake)
    source_commit.cache_clear()
    yield tmp_path
    source_commit.cache_clear()


def test_the_head_of_a_checkout(checkout):
    assert source_commit() == git(checkout, 'rev-parse', 'HEAD')


def test_changed_files_are_said(checkout):
    (checkout / 'taskptq' / 'new.py').write_text('')
    assert source_commit().endswith('-dirty')


def test_a_package_installed_inside_another_repository(checkout, monkeypatch):
    inner = checkout / 'venv' / 'taskptq' / '__init__.py'
    inner.parent.mkdir(parents=True)
    monkeypatch.setattr(
        commit, 'taskptq', SimpleNamespace(__file__=str(inner))
    )
    assert source_commit() is None


def test_without_git(checkout, monkeypatch):
    monkeypatch.setenv('PATH', '')
    assert source_commit() is None
