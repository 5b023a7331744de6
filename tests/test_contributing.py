"""The walkthroughs of CONTRIBUTING.md run as they are written."""

import importlib
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip('mmengine')

import taskptq.methods
from taskptq.engine.recipe import Recipe
from taskptq.engine.recipe_source import read_recipe
from taskptq.recipes import folders, resolve

ROOT = Path(__file__).resolve().parents[1]
GUIDE = (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8')
# A block with the file's path in its first line.
FILE = re.compile(r'^```python\n# (\S+\.py)\n(.*?)^```$', re.DOTALL | re.M)
RECIPE = re.compile(r'^```python\n(recipe = .*?)^```$', re.DOTALL | re.M)
SECTIONS = {
    'observer': 'Your own observer',
    'quantizer': 'Your own quantizer',
    'method': 'Your own method',
    'counterpart': 'Your own attention counterpart',
}
SCOPE = 'walkthrough'


def files_of(title):
    """Return the files of a section, content by path."""
    body = GUIDE.partition(f'\n## {title}\n')[2].partition('\n## ')[0]
    return dict(FILE.findall(body))


@pytest.fixture
def written(tmp_path, monkeypatch, registry_guard):
    """Write a section's files, importable as if they lay in the tree."""
    modules = set(sys.modules)

    def write(title):
        files = files_of(title)
        for path, content in files.items():
            target = tmp_path / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(content)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(
            taskptq.methods,
            '__path__',
            [*taskptq.methods.__path__, str(tmp_path / 'taskptq/methods')],
        )
        recipes = tmp_path / 'taskptq' / 'recipes'
        if recipes.is_dir():
            monkeypatch.setitem(folders._FOLDERS, SCOPE, recipes)
        return files

    yield write
    for name in set(sys.modules) - modules:
        if name.startswith(('my_package', 'taskptq.methods.')):
            del sys.modules[name]


def import_file(path):
    """Import a file by its path below the top level."""
    name = path.removesuffix('.py').removesuffix('/__init__')
    return importlib.import_module(name.replace('/', '.'))


def recipes_of(title):
    """Return the recipes that a section's other blocks define."""
    body = GUIDE.partition(f'\n## {title}\n')[2].partition('\n## ')[0]
    for block in RECIPE.findall(body):
        space = {}
        exec(block, space)
        yield space['recipe']


def run_tests(content):
    """Run every test function of a file; return how many there were."""
    space = {'__name__': 'walkthrough'}
    exec(compile(content, 'CONTRIBUTING.md', 'exec'), space)
    tests = [value for key, value in space.items() if key.startswith('test_')]
    for test in tests:
        test()
    return len(tests)


@pytest.mark.parametrize('section', SECTIONS)
def test_a_walkthrough_runs(section, written):
    files = written(SECTIONS[section])
    for path in files:
        if path.startswith('taskptq/methods/'):
            import_file(path)
    if section == 'counterpart':
        import_file('my_package/__init__.py')
    tests = [text for path, text in files.items() if '/test_' in f'/{path}']
    assert sum(map(run_tests, tests)) > 0
    for path in files:
        if path.startswith('taskptq/recipes/'):
            resolve(f'{SCOPE}::w4a4_{Path(path).stem}')
    for recipe in recipes_of(SECTIONS[section]):
        settings = read_recipe(recipe)
        Recipe.from_config(settings.pop('qconfig'), **settings)


@pytest.mark.parametrize(
    ('section', 'count'),
    # A method's fifth file is a README, a counterpart's fourth the config;
    # the attention itself is the user's.
    [('observer', 2), ('quantizer', 3), ('method', 4), ('counterpart', 4)],
)
def test_a_walkthrough_has_as_many_files_as_promised(section, count):
    assert len(files_of(SECTIONS[section])) == count


@pytest.mark.parametrize('section', SECTIONS)
def test_new_files_do_not_exist_yet(section):
    taken = [
        path for path in files_of(SECTIONS[section]) if (ROOT / path).exists()
    ]
    assert not taken
