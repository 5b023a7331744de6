"""Models of a table's rows, looked up by name."""

from types import SimpleNamespace

import pytest

pytest.importorskip('mmengine')

from taskptq.bench.row_models import column_values


def test_columns_without_a_value_are_empty():
    scores = {'metrics': {'a': 0.5}}
    assert column_values(scores, {'A': 'a', 'B': 'b'}) == {'A': 0.5, 'B': None}


def test_own_patterns_are_added_to_those_of_the_row(monkeypatch):
    from taskptq.bench import row_models
    from taskptq.engine.pipeline import Recipe

    recipe = Recipe.from_config({'keep_float': ['head']})
    monkeypatch.setattr(row_models, 'read_recipe', lambda row, images: recipe)
    measurement = SimpleNamespace(images=lambda row: None)
    found = row_models.recipe_of(measurement, None, keep_float=['neck.*'])
    assert found.qconfig.keep_float == ('head', 'neck.*')
    assert recipe.qconfig.keep_float == ('head',)
