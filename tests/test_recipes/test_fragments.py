"""Every fragment of the bit ladders is a name, with the same content."""

import hashlib
import json
from pathlib import Path

import pytest

from taskptq.recipes import method_names, register_folder, resolve

pytest.importorskip('mmengine')

ROOT = Path(__file__).resolve().parents[2]
PROJECTS = ('lane_detection', 'sam_detector')
# Of each method the lowest and the highest bits that were measured.
DIGESTS = json.loads(
    (Path(__file__).parent / 'recipe_digests.json').read_text()
)
FRAGMENTS = {
    'taskptq': ROOT / 'configs/_base_/quant',
    **{
        name: ROOT / f'projects/{name}/configs/_base_/quant'
        for name in PROJECTS
    },
}


@pytest.fixture(scope='module', autouse=True)
def _projects():
    for name in PROJECTS:
        register_folder(ROOT / f'projects/{name}/{name}/recipes', scope=name)


def settings_of(recipe):
    """What a recipe sets; None and nothing are the same."""
    return {key: value for key, value in recipe.items() if value}


def digest(settings):
    """A digest of the checked Recipe, and of how it is trained."""
    from taskptq.engine.builder import to_plain
    from taskptq.engine.pipeline import Recipe

    recipe = Recipe.from_config(
        settings['qconfig'],
        **{
            key: settings.get(key)
            for key in ('reconstruction', 'loss', 'rewrites')
        },
    )
    content = {
        **recipe.to_dict(),
        'distillation': to_plain(settings.get('distillation')),
    }
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@pytest.mark.parametrize('name', sorted(DIGESTS))
def test_a_name_means_what_was_measured(name):
    assert digest(resolve(name)) == DIGESTS[name]


@pytest.mark.parametrize('scope', FRAGMENTS)
def test_every_fragment_is_a_name(scope):
    from mmengine.config import Config

    fragments = sorted(FRAGMENTS[scope].glob('w*.py'))
    assert fragments
    for path in fragments:
        written = Config.fromfile(path).to_dict()
        named = resolve(f'{scope}::{path.stem}')
        assert settings_of(named) == settings_of(written), path.stem


@pytest.mark.parametrize('scope', FRAGMENTS)
def test_every_method_was_measured(scope):
    measured = {
        name.split('_', maxsplit=1)[1]
        for name in (
            key.removeprefix(f'{scope}::')
            for key in DIGESTS
            if key.startswith(scope)
        )
    }
    assert measured >= set(method_names(scope))
