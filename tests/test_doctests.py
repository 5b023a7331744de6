"""The examples in docstrings are true."""

import doctest
import importlib
from pathlib import Path

import pytest

import taskptq

ROOT = Path(taskptq.__file__).parent
PATHS = [path.relative_to(ROOT) for path in sorted(ROOT.rglob('*.py'))]
NAMES = [
    '.'.join(('taskptq', *path.with_suffix('').parts))
    for path in PATHS
    if '>>> ' in (ROOT / path).read_text()
]


@pytest.mark.parametrize('name', NAMES)
def test_examples(name):
    finder = doctest.DocTestFinder(exclude_empty=True)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    count = 0
    for test in finder.find(importlib.import_module(name)):
        report = []
        failed, tried = runner.run(test, out=report.append)
        count += tried
        assert failed == 0, ''.join(report)
    assert count > 0


def test_there_are_examples():
    assert {
        'taskptq.core.functional',
        'taskptq.core.observers',
        'taskptq.core.quantizers',
        'taskptq.core.search',
        'taskptq.core.spec',
        'taskptq.core.switches',
        'taskptq.modules.attention',
        'taskptq.modules.base',
        'taskptq.modules.dynamic_class',
        'taskptq.prepare.patterns',
        'taskptq.recipes.merge',
        'taskptq.recipes.names',
    } <= set(NAMES)
