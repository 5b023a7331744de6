"""Sparse models from recipe to file and back."""

import copy

import pytest
import torch

import taskptq
from taskptq.core.settings import SettingError
from taskptq.engine.recipe import Recipe
from taskptq.engine.restore import restore_model
from taskptq.export.checkpoint import load
from taskptq.modules.base import quant_modules
from taskptq.recipes import resolve
from taskptq.testing import tiny_batches, tiny_model

STEPS = {'reconstruction': {'steps': 3}}
NETWORK = {'reconstruction': {'network_steps': 2, 'vary_images': 0.0}}


def zeros_of(model, report):
    """Count the zeros of the prunable weights."""
    weights = dict(model.named_parameters())
    return sum(
        int((weights[row['name']] == 0).sum())
        for row in report['sparsity']['layers']
    )


@pytest.mark.parametrize(
    ('name', 'recipe'),
    [
        ('conv', 'sparse70-erk'),
        ('conv', ['sparse-trained_sparse70', STEPS]),
        ('conv', 'w8a8_sparse70'),
        ('conv', 'w8a8_sparse50_size3x'),
        ('conv', ['sparse-network_sparse60', NETWORK]),
        ('transposed', 'sparse2-4'),
        ('transposed', 'w4a4_mse_sparse50-uniform'),
        ('transposed', 'w4a8_gptq_sparse50'),
        ('transformer', 'sparse70'),
        ('transformer', ['w8a8_sparse-network_sparse2-4', NETWORK]),
        ('transformer', ['w4a8_qdrop_sparse60', STEPS]),
    ],
    ids=str,
)
def test_zeros_survive_to_the_file_and_back(name, recipe, tmp_path):
    model = tiny_model(name).eval()
    twin = copy.deepcopy(model)
    batches = tiny_batches(name)
    _, report = taskptq.quantize(
        model, batches, recipe=recipe, out=tmp_path / 'q.pth'
    )
    found = report['sparsity']
    wanted = sum(row['zeros'] for row in found['layers'])
    assert found['zeros'] == wanted
    if 'rate' in resolve_sparsity(recipe):
        rate = resolve_sparsity(recipe)['rate']
        assert wanted == round(rate * found['prunable'])
    # A grid may round more weights to 0.
    assert zeros_of(model, report) >= wanted
    if report['freeze']['num_weights'] == 0:
        assert zeros_of(model, report) == wanted
    restore_model(load(tmp_path / 'q.pth'), twin)
    with torch.no_grad():
        for batch in batches:
            torch.testing.assert_close(
                twin(batch), model(batch), rtol=0, atol=0
            )


def resolve_sparsity(recipe):
    name = recipe if isinstance(recipe, str) else recipe[0]
    return resolve(name)['qconfig']['sparsity']


def test_least_squares_beat_masks_alone(tmp_path):
    errors = {}
    batches = tiny_batches('conv', num_batches=4)
    dense = tiny_model('conv').eval()
    for name in ('sparse', 'mse'):
        model = copy.deepcopy(dense)
        taskptq.quantize(model, batches, recipe=f'{name}_sparse60')
        with torch.no_grad():
            errors[name] = sum(
                float((model(x) - dense(x)).square().sum()) for x in batches
            )
    assert errors['sparse'] < 0.7 * errors['mse']


def test_first_and_last_layers_stay_dense():
    model = tiny_model('conv').eval()
    first = next(iter(quant_names(copy.deepcopy(model))))
    _, report = taskptq.quantize(
        model, tiny_batches('conv'), recipe='mse_sparse60'
    )
    assert report['sparsity']['dense'][f'{first}.weight'] == (
        'first or last layer'
    )


def quant_names(model):
    taskptq.quantize(model, tiny_batches('conv'), recipe='w8a8_minmax')
    return [name for name, _ in quant_modules(model)]


def test_masks_do_not_go_with_chosen_bits():
    settings = resolve('w8a8')
    with pytest.raises(SettingError, match='does not go with mixed_prec'):
        Recipe.from_config(
            {**settings['qconfig'], 'sparsity': {'rate': 0.5}},
            mixed_precision=settings['mixed_precision'],
        )


def test_without_sparsity_the_report_has_none():
    _, report = taskptq.quantize(
        tiny_model('conv').eval(), tiny_batches('conv'), recipe='w8a8_mse'
    )
    assert 'sparsity' not in report
    assert 'sparsity' not in report['recipe']['qconfig']
