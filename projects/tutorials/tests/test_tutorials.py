"""The commands of the tutorials run, in their order, on drawn data."""

import importlib
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from taskptq.cli.main import main

pytestmark = pytest.mark.slow

FOLDER = Path(__file__).resolve().parents[1]
FENCE = re.compile(r'^```(\w*)\n(.*?)^```$', re.DOTALL | re.M)
# A block of Python whose first line is the name of a file is that file.
FILE = re.compile(r'# ([\w/]+\.py)\n')
MOST_LINES = 120
# The tutorials' number of images, of which the test takes fewer.
IMAGES = re.compile(r'(num.images[ =])64\b')

TUTORIALS = {
    '1_detector.md': 'mmdet',
    '2_segmentor.md': 'mmseg',
    '3_accuracy.md': 'mmdet',
    '4_deploy.md': 'mmdet',
}


def blocks(page):
    """Return language and text of the fenced blocks of a page."""
    text = (FOLDER / page).read_text(encoding='utf-8')
    return FENCE.findall(IMAGES.sub(r'\g<1>4', text))


def commands(text):
    """Return the command lines of a block, split into words."""
    lines = text.replace('\\\n', ' ').splitlines()
    return [words for line in lines if (words := shlex.split(line, True))]


def run(words, *, scope):
    """Run one command in this process."""
    if words[0] == 'taskptq':
        main(words[1:])
        return
    assert words[0] == 'python', words
    script = Path(words[1])
    if not script.is_file():
        package = importlib.import_module(scope)
        script = Path(package.__file__).parent / '.mim' / script
    before, sys.argv = sys.argv, [str(script), *words[2:]]
    try:
        runpy.run_path(str(script), run_name='__main__')
    finally:
        sys.argv = before


@pytest.mark.parametrize('page', TUTORIALS)
def test_every_block_of_a_tutorial_runs(page, make_project, capsys):
    scope = TUTORIALS[page]
    make_project(scope)
    ran = 0
    for language, text in blocks(page):
        if language == 'python':
            name = FILE.match(text)
            assert name, f'no file name on the first line of {text}'
            path = Path(name[1])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        elif language == 'sh':
            for words in commands(text):
                run(words, scope=scope)
                ran += 1
        else:
            assert language == 'text', 'say what a block is'
    assert ran >= 4
    text = (FOLDER / page).read_text(encoding='utf-8')
    for name in re.findall(r'\| `([\w./]+)` \|', text):
        assert Path(name).exists(), f'{page} promises {name}'


def test_the_index_lists_every_tutorial_and_they_are_short():
    index = (FOLDER / 'README.md').read_text(encoding='utf-8')
    found = sorted(path.name for path in FOLDER.glob('[0-9]*.md'))
    assert found == sorted(TUTORIALS)
    for name in found:
        assert f']({name})' in index
        lines = (FOLDER / name).read_text(encoding='utf-8').splitlines()
        assert len(lines) < MOST_LINES
