"""Names mean what was measured under them."""

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


@pytest.fixture(scope='module', autouse=True)
def _projects():
    for name in PROJECTS:
        register_folder(ROOT / f'projects/{name}/{name}/recipes', scope=name)


def digest(settings):
    """A digest of the checked Recipe, and of how it is trained."""
    from taskptq.engine.builder import to_plain
    from taskptq.engine.recipe import Recipe

    recipe = Recipe.from_config(
        settings['qconfig'],
        **{
            key: settings.get(key)
            for key in (
                'reconstruction',
                'loss',
                'rewrites',
                'mixed_precision',
            )
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


@pytest.mark.parametrize('scope', ['taskptq', *PROJECTS])
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
