"""A recipe: checked when it is read, plain when it is written."""

import json

import pytest

pytest.importorskip('mmengine')

from taskptq.core.settings import SettingError
from taskptq.engine.recipe import LOCAL_SETTINGS, Recipe

QCONFIG = {'weight': {'num_bits': 4}}


def test_plain_form_reads_back_to_the_same_recipe():
    recipe = Recipe.from_config(
        QCONFIG,
        reconstruction={'steps': 5, 'loss': {'type': 'MSEReconLoss'}},
        calibration={'num_images': 8},
        seed=3,
    )
    plain = json.loads(json.dumps(recipe.to_dict()))
    assert plain['loss'] == {'type': 'MSEReconLoss'}
    assert plain['reconstruction'] == {'steps': 5, 'seed': 3}
    again = Recipe.from_config(**plain)
    assert again.to_dict() == recipe.to_dict()
    assert again.digest() == recipe.digest()


@pytest.mark.parametrize(
    'change',
    [
        {'seed': 1},
        {'qconfig': {'weight': {'num_bits': 5}}},
        {'reconstruction': {'steps': 6}},
        {'reconstruction': None},
    ],
    ids=['seed', 'bits', 'steps', 'none'],
)
def test_digest_differs_between_recipes(change):
    settings = {'qconfig': QCONFIG, 'reconstruction': {'steps': 5}}
    recipe = Recipe.from_config(**settings)
    assert Recipe.from_config(**{**settings, **change}).digest() != (
        recipe.digest()
    )


def test_digest_does_not_depend_on_where_a_machine_keeps_things():
    recipe = Recipe.from_config(QCONFIG, reconstruction={'steps': 5})
    local = dict(zip(LOCAL_SETTINGS, ('cache', 10**9), strict=True))
    moved = Recipe.from_config(QCONFIG, reconstruction={'steps': 5, **local})
    assert moved.reconstruction['cache_dir'] == 'cache'
    assert moved.digest() == recipe.digest()


def test_own_seed_of_the_reconstruction_wins():
    recipe = Recipe.from_config(QCONFIG, reconstruction={'seed': 7}, seed=3)
    assert recipe.reconstruction['seed'] == 7


def test_loss_without_reconstruction():
    with pytest.raises(ValueError, match='reconstruction'):
        Recipe.from_config(QCONFIG, loss={'type': 'MSEReconLoss'})


def test_unknown_setting_of_the_reconstruction():
    with pytest.raises(SettingError, match='step'):
        Recipe.from_config(QCONFIG, reconstruction={'stepps': 5})
