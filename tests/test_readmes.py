"""Markdown pages: links, paths, commands and recipes exist."""

import importlib
import re
import shlex
from functools import cache
from pathlib import Path

import pytest

pytest.importorskip('mmengine')

from taskptq.cli.main import COMMANDS
from taskptq.recipes import folders, resolve

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in (
        '*.md',
        'configs/**/*.md',
        'projects/**/*.md',
        'taskptq/**/*.md',
    )
    for path in ROOT.glob(pattern)
)
READMES = [page for page in PAGES if page.endswith('README.md')]
# Reference pages, as long as what they describe.
LONG = ('taskptq/recipes/README.md', 'taskptq/export/README.md')
MAX_LINES = 150
# These tell what was; files may have gone since.
HISTORY = ('CHANGELOG.md',)
# The walkthroughs' own files and recipes; tests/test_contributing.py has them.
WALKTHROUGHS = (
    'sample_balanced',
    'sample-balanced',
    'shift_scale',
    'shift-scale',
    'three_sigma',
    'quant_attention',
)

LINK = re.compile(r'!?\[[^\]]*\]\(([^)\s]+)\)')
FENCE = re.compile(r'^```(\w*)\n(.*?)^```$', re.DOTALL | re.M)
SPAN = re.compile(r'`([^`]+)`')
PATH = re.compile(
    r'(?<![\w./-])((?:tools|taskptq|configs|projects|tests)/[\w./+-]+)'
)
RECIPE = re.compile(
    r'--recipes? ((?:[\w:+-]+[ \n]+(?:\\\n *)?(?!-))*[\w:+-]+)'
    r"|recipe='([^']+)'"
)
MODULE = re.compile(r'from (taskptq\.[\w.]+|tools\.[\w.]+) import')


@cache
def text_of(page):
    """Return a page's text."""
    return (ROOT / page).read_text(encoding='utf-8')


def code_of(page):
    """Return all code of a page: fences and spans."""
    text = text_of(page)
    fences = [body for _, body in FENCE.findall(text)]
    return fences + SPAN.findall(FENCE.sub('', text))


def anchors_of(page):
    """Return the anchors that a page's headings have."""
    text = FENCE.sub('', text_of(page))
    titles = re.findall(r'^#+ (.+)$', text, re.M)
    return {
        re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-')
        for title in titles
    }


def commands_of(page):
    """Yield the commands of a page, as lists of words."""
    for _, body in FENCE.findall(text_of(page)):
        joined = body.replace('\\\n', ' ').replace(' && ', '\n')
        for line in joined.splitlines():
            if line.strip().startswith(('python ', 'taskptq ')):
                yield shlex.split(line, comments=True)


def is_complete(words):
    """Whether a console command has every option that it needs."""
    module = importlib.import_module(f'taskptq.cli.{words[1]}')
    try:
        module.parse_args(words[2:])
    except SystemExit as error:
        return error.code == 0  # of --help
    return True


def source_of(words):
    """Return the file that parses a command's options, None if not here."""
    if words[0] == 'taskptq':
        return ROOT / 'taskptq' / 'cli' / f'{words[1]}.py'
    if words[1] == '-m':
        name = words[2].replace('.', '/')
        found = [*ROOT.glob(f'projects/*/{name}.py')]
        found += [*ROOT.glob(f'projects/*/{name}/__main__.py')]
        return found[0] if found else None
    path = ROOT / words[1]
    return path / '__main__.py' if path.is_dir() else path


def option_sources(path):
    """Return the text of a program and of what a door leads to."""
    text = path.read_text(encoding='utf-8')
    for name in MODULE.findall(text):
        module = ROOT / f'{name.replace(".", "/")}.py'
        text += module.read_text('utf-8') if module.is_file() else ''
    if path.name == '__main__.py':
        text += ''.join(
            other.read_text('utf-8') for other in path.parent.glob('*.py')
        )
    return text


@pytest.mark.parametrize('page', PAGES)
def test_links_lead_somewhere(page):
    for target in LINK.findall(FENCE.sub('', text_of(page))):
        if target.startswith(('http://', 'https://')):
            continue
        path, _, anchor = target.partition('#')
        found = ((ROOT / page).parent / path) if path else ROOT / page
        assert found.exists(), f'{page}: {target}'
        if anchor:
            other = found.resolve().relative_to(ROOT).as_posix()
            assert anchor in anchors_of(other), f'{page}: {target}'


@pytest.mark.parametrize('page', [p for p in PAGES if p not in HISTORY])
def test_named_paths_exist(page):
    for code in code_of(page):
        for found in PATH.findall(code):
            path = found.rstrip('./')
            if any(part in found for part in WALKTHROUGHS):
                continue
            # A pattern is cut at the first letter that no path has.
            rest = code.partition(found)[2][:1]
            if rest in ('*', '{', '<'):
                continue
            # Pictures are what a command writes; not all are committed.
            if path.endswith('.png'):
                path = path.rpartition('/')[0]
            near = (ROOT / path, (ROOT / page).parent / path)
            assert any(one.exists() for one in near), f'{page}: {found}'


@pytest.mark.parametrize('page', [p for p in PAGES if p not in HISTORY])
def test_commands_exist_and_know_their_options(page):
    for words in commands_of(page):
        if words[0] == 'taskptq':
            assert words[1] in COMMANDS, f'{page}: {" ".join(words)}'
        # A script that the page itself shows.
        if f'\n# {words[1]}\n' in text_of(page):
            continue
        path = source_of(words)
        assert path is not None, f'{page}: {words}'
        assert path.is_file(), f'{page}: {words}'
        source = option_sources(path)
        for word in words[2:]:
            option = word.partition('=')[0]
            if option.startswith('--'):
                assert f"'{option}'" in source, f'{page}: {" ".join(words)}'


@pytest.mark.parametrize('page', PAGES)
def test_commands_have_all_that_they_need(page):
    for words in commands_of(page):
        if words[0] != 'taskptq' or words[1] == 'bench' or '...' in words:
            continue
        assert is_complete(words), f'{page}: {" ".join(words)}'


@pytest.mark.parametrize('page', [p for p in PAGES if p not in HISTORY])
def test_recipes_resolve(page, monkeypatch):
    for folder in ROOT.glob('projects/*/*/recipes'):
        scope = folder.parent.name
        monkeypatch.setitem(folders._FOLDERS, scope, folder)
    for code in code_of(page):
        for several, one in RECIPE.findall(code):
            for name in (several or one).replace('\\', ' ').split():
                if name == 'NAME' or name.partition('_')[2] in WALKTHROUGHS:
                    continue
                # A file that the page itself shows.
                if f'\n# {name}.py\n' in text_of(page):
                    continue
                assert resolve(name)['qconfig'], f'{page}: {name}'


@pytest.mark.parametrize('page', [p for p in PAGES if p not in HISTORY])
def test_no_page_names_a_fragment(page):
    assert '--quant' not in text_of(page)
    assert '_base_/quant' not in text_of(page)


@pytest.mark.parametrize('page', [p for p in READMES if p not in LONG])
def test_a_readme_is_short(page):
    assert len(text_of(page).splitlines()) <= MAX_LINES


def test_tables_of_the_first_page_have_no_blanks():
    lines = [
        line for line in text_of('README.md').splitlines() if line[:1] == '|'
    ]
    assert len(lines) > 10
    for line in lines:
        cells = [cell.strip() for cell in line.strip('|').split('|')]
        assert all(cells), line


def test_a_summary_shows_at_least_five_models():
    body = text_of('README.md').partition('<!-- table:summary -->')[2]
    table = body.partition('<!-- /table -->')[0].strip().splitlines()
    assert len(table) - 2 >= 5


def test_the_install_line_comes_before_make():
    text = text_of('README.md')
    assert 0 < text.index('pip install') < text.index('`make ')


@pytest.mark.parametrize(
    'family',
    sorted(path.parent.name for path in ROOT.glob('configs/*/metafile.yml')),
)
def test_every_family_has_a_page_that_the_index_lists(family):
    assert f'configs/{family}/README.md' in PAGES
    assert f'({family}/README.md)' in text_of('configs/README.md')
