"""The examples in the docstrings of the lower layers are true."""

import doctest
import importlib
import pkgutil

import pytest

import taskptq.core
import taskptq.prepare


def modules_of(*packages):
    return sorted(
        info.name
        for package in packages
        for info in pkgutil.iter_modules(
            package.__path__, prefix=f'{package.__name__}.'
        )
    )


NAMES = [
    *modules_of(taskptq.core, taskptq.prepare),
    'taskptq.recipes.merge',
    'taskptq.recipes.names',
]


def examples_of(name):
    tests = doctest.DocTestFinder().find(importlib.import_module(name))
    return [test for test in tests if test.examples]


@pytest.mark.parametrize('name', NAMES)
def test_examples(name):
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in examples_of(name):
        report = []
        failed, _ = runner.run(test, out=report.append)
        assert failed == 0, ''.join(report)


def test_there_are_examples():
    found = {name for name in NAMES if examples_of(name)}
    assert {
        'taskptq.core.functional',
        'taskptq.core.spec',
        'taskptq.prepare.patterns',
        'taskptq.recipes.merge',
        'taskptq.recipes.names',
    } <= found
