"""Recipes of the project, by name once it is imported."""

import pytest

import lane_detection  # noqa: F401  (registers the recipes)
from taskptq.engine.ptq_hook import PTQHook
from taskptq.recipes import method_names, resolve


def test_a_hook_takes_the_projects_recipes_by_name():
    hook = PTQHook(recipe='w4a4_selective-focus')
    assert hook.recipe.loss['type'] == 'SelectiveFocusLoss'
    assert hook.recipe.loss['selection'] == 'threshold'
    assert hook.recipe.to_dict()['qconfig']['weight']['num_bits'] == 4


@pytest.mark.parametrize('method', method_names('lane_detection'))
def test_every_recipe_can_be_built(method):
    name = f'lane_detection::w2a4_{method}'
    assert PTQHook(recipe=name).recipe is not None


def test_the_own_method_is_named_by_its_scope():
    own = resolve('lane_detection::w4a4_qdrop-network-uniform')
    shipped = resolve('w4a4_qdrop-network-uniform')
    assert own['reconstruction']['network']['weight_lr'] == 0.01
    assert shipped['reconstruction']['network']['weight_lr'] == 0.05


@pytest.mark.parametrize(
    ('first', 'second'),
    [
        ('sas', 'selective-focus'),
        ('sgf', 'selective-focus'),
        ('ours-s', 'qdrop-ours-s'),
        ('ours', 'qdrop-selective-focus'),
    ],
)
def test_what_is_compared_differs(first, second):
    assert resolve(f'w4a4_{first}') != resolve(f'w4a4_{second}')
