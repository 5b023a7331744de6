"""The page of all keys of a recipe: complete, and with true defaults."""

import inspect
import re
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

pytest.importorskip('mmengine')

from taskptq.analysis.mixed_precision.settings import MixedPrecisionConfig
from taskptq.engine.calibration_config import CalibrationConfig
from taskptq.engine.ptq_hook import PTQHook
from taskptq.engine.recipe import Recipe
from taskptq.engine.short_names import short_name
from taskptq.prepare import points
from taskptq.prepare.size import SizeConfig
from taskptq.prepare.sparsity import SparsityConfig
from taskptq.qat.distillation import DistillationConfig
from taskptq.qat.hook import QATHook
from taskptq.recipes import KEYS
from taskptq.reconstruction.config import ReconstructionConfig
from taskptq.registry import OBSERVERS, QUANTIZERS, RECON_LOSSES, REWRITES

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / 'taskptq' / 'recipes' / 'README.md').read_text('utf-8')
SPAN = re.compile(r'`([^`\n]+)`')
CONFIGS = {
    'reconstruction': ReconstructionConfig,
    'distillation': DistillationConfig,
    'calibration': CalibrationConfig,
    'mixed_precision': MixedPrecisionConfig,
    'qconfig.sparsity': SparsityConfig,
    'qconfig.size': SizeConfig,
}


def section(title):
    """Return the text below a heading."""
    body = PAGE.partition(f'\n## {title}\n')[2].partition('\n## ')[0]
    assert body, f'the page has no section {title}'
    return body


def first_cells(text):
    """Return the code spans in the first cell of each table line."""
    return [
        span
        for line in text.splitlines()
        if line.startswith('| `')
        for span in SPAN.findall(line.split('|')[1])
    ]


def defaults(config):
    """Return the default of each field, as source text."""
    return {
        field.name: repr(
            field.default_factory()
            if field.default is MISSING
            else field.default
        )
        for field in fields(config)
    }


@pytest.mark.parametrize('name', CONFIGS)
def test_every_key_and_its_default_are_on_the_page(name):
    written = dict(
        re.findall(r'^\| `(\w+)` \| `([^`]+)` \|', section(f'`{name}`'), re.M)
    )
    assert written == defaults(CONFIGS[name])


def test_every_key_of_a_recipe_is_on_the_page():
    assert sorted(first_cells(section('Keys of a recipe'))) == sorted(KEYS)


def test_every_key_of_a_qconfig_is_on_the_page():
    found = first_cells(section('`qconfig`'))
    assert sorted(found) == sorted((*points.KEYS, *points.OWN_KEYS))


def test_the_examples_are_recipes():
    blocks = [
        *re.findall(r'^```python\n(qconfig = .*?)^```$', PAGE, re.S | re.M),
        *re.findall(r'^```python\n(rewrites = .*?)^```$', PAGE, re.S | re.M),
    ]
    space = {}
    for block in blocks:
        exec(block, space)
    recipe = Recipe.from_config(space['qconfig'], rewrites=space['rewrites'])
    assert len(recipe.rewrites) == 2


@pytest.mark.parametrize(
    ('kind', 'registry'),
    [
        ('observers', OBSERVERS),
        ('quantizers', QUANTIZERS),
        ('losses', RECON_LOSSES),
        ('rewrites', REWRITES),
    ],
)
def test_every_registered_class_is_on_the_page(kind, registry):
    (line,) = re.findall(rf'^\| {kind} \|.*$', PAGE, re.M)
    own = {
        name
        for name, found in registry.module_dict.items()
        if found.__module__.startswith('taskptq.')
    }
    # A base class that sets no range of its own.
    own.discard('HistogramObserver')
    written = re.findall(r'`(\w+)` or `(\w+)`', line)
    assert {name for _, name in written} == own
    for short, name in written:
        assert short == short_name(name, kind=registry.name)


def test_every_argument_of_the_hooks_is_on_the_page():
    written = dict(
        re.findall(
            r'^\| `(\w+)` \| `([^`]+)` \|',
            section('Arguments of the hooks'),
            re.M,
        )
    )
    found = {
        name: repr(parameter.default)
        for hook in (PTQHook, QATHook)
        for name, parameter in inspect.signature(hook).parameters.items()
        if name not in (*KEYS, 'recipe')
    }
    assert written == found
