"""Folders that projects register, and how their files are read."""

import pytest

from taskptq.core.settings import SettingError
from taskptq.recipes import folders, method_names, register_folder, resolve


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Add method files to a registered folder of the scope ``own``."""
    monkeypatch.setattr(
        folders, '_FOLDERS', {folders.OWN: folders._FOLDERS[folders.OWN]}
    )

    def add(scope='own', **files):
        path = tmp_path / scope
        path.mkdir(exist_ok=True)
        for name, text in files.items():
            (path / f'{name}.py').write_text(text)
        register_folder(path)
        return path

    return add


def test_a_folder_adds_its_methods(folder):
    folder(
        mine="base = ['qdrop', '_part']\nloss = dict(type='Mine')\n",
        _part="rewrites = [dict(type='Rewrite')]\n",
    )
    assert method_names('own') == ['mine']
    assert resolve('w2a4_mine') == {
        **resolve('w2a4_qdrop'),
        'loss': {'type': 'Mine'},
        'rewrites': [{'type': 'Rewrite'}],
    }


def test_a_change_in_a_base_may_delete(folder):
    folder(
        _loss='reconstruction = dict(loss=dict(_delete_=True, type="B"))\n',
        mine="base = ['kl-fg', '_own', '_loss']\n",
        _own='reconstruction = dict(loss=dict(tau=1))\n',
    )
    assert resolve('w4a4_mine')['reconstruction']['loss'] == {'type': 'B'}


def test_an_import_changes_no_name_of_taskptq(folder):
    before = resolve('w4a4_mse')
    folder(mse="qconfig = dict(weight=dict(type='Other'))\n")
    assert resolve('w4a4_mse') == before
    own = resolve('own::w4a4_mse')['qconfig']['weight']
    assert own == {'type': 'Other', 'num_bits': 4}
    # A scope has the methods of taskptq besides its own.
    assert resolve('own::w4a4_gptq') == resolve('w4a4_gptq')
    assert resolve('taskptq::w4a4_mse') == before


def test_several_projects_with_one_method(folder):
    for scope in ('one', 'two'):
        folder(scope, mine=f"base = 'mse'\nloss = dict(type='{scope}')\n")
    with pytest.raises(
        SettingError,
        match="'w4a4_mine': several projects have a method "
        "'mine': put one:: or two:: before the name",
    ):
        resolve('w4a4_mine')
    assert resolve('two::w4a4_mine')['loss'] == {'type': 'two'}


def test_the_nearest_method_may_be_a_projects(folder):
    folder(selective='base = "mse"\n')
    with pytest.raises(SettingError, match='the nearest are selective, '):
        resolve('w4a4_selectiv')


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (
            'qconf = dict()',
            r"mine\.py has unknown key 'qconf' "
            r"\(did you mean 'qconfig'\?\)",
        ),
        (
            "base = 'qdrob'",
            r"mine\.py: base: there is no method 'qdrob' "
            r'\(the nearest are qdrop, ',
        ),
        ("base = 'mine'", r'mine\.py is a base of itself'),
    ],
)
def test_a_file_that_cannot_be(folder, text, message):
    folder(mine=f'{text}\n')
    with pytest.raises(SettingError, match=message):
        resolve('w4a4_mine')


def test_registering_twice(folder, tmp_path):
    path = folder(mine='base = "mse"\n')
    register_folder(path)
    register_folder(str(path), scope='own')
    with pytest.raises(SettingError, match='it has its recipes in'):
        register_folder(tmp_path, scope='own')
    with pytest.raises(SettingError, match='it has its recipes in'):
        register_folder(path, scope='taskptq')


def test_a_package(folder, tmp_path, monkeypatch):
    package = tmp_path / 'some_project' / 'recipes'
    package.mkdir(parents=True)
    for init in (package.parent, package):
        (init / '__init__.py').touch()
    (package / 'mine.py').write_text('base = "gptq"\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    register_folder('some_project.recipes')
    assert resolve('some_project::w4a4_mine') == resolve('w4a4_gptq')
    assert method_names('some_project') == ['mine']


@pytest.mark.parametrize(
    ('where', 'message'),
    [
        ('no_such_package.recipes', 'there is no such folder or package'),
        ('/no/such/folder', 'there is no such folder'),
        ('json.decoder', 'there is no such folder or package'),
    ],
)
def test_where_there_is_nothing(folder, where, message):
    with pytest.raises(SettingError, match=message):
        register_folder(where)


def test_a_scope_is_a_name(folder, tmp_path):
    with pytest.raises(SettingError, match='give a name such as'):
        register_folder(tmp_path, scope='a::b')
