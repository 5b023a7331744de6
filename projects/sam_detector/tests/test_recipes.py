"""Recipes of the project, by name once it is imported."""

import pytest

import sam_detector  # noqa: F401  (registers the recipes)
from taskptq.engine.ptq_hook import PTQHook
from taskptq.recipes import method_names, resolve


def test_a_hook_takes_the_projects_recipes_by_name():
    hook = PTQHook(recipe='w4a4_ptq4sam-l')
    assert hook.recipe.rewrites == [{'type': 'BimodalIntegration'}]
    assert hook.recipe.reconstruction['drop_prob'] == 0.5


@pytest.mark.parametrize('method', method_names('sam_detector'))
def test_every_recipe_leaves_the_detector_float(method):
    name = f'sam_detector::w2a4_{method}'
    qconfig = PTQHook(recipe=name).recipe.to_dict()['qconfig']
    assert any('detector' in pattern for pattern in qconfig['keep_float'])


def test_the_own_method_is_named_by_its_scope():
    own = resolve('sam_detector::w8a8_mse')['qconfig']
    assert own['edge_bits'] is None
    assert resolve('w8a8_mse')['qconfig']['edge_bits'] == 8
