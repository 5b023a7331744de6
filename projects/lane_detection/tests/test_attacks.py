"""Attacks raise the losses of lane models, float and quantized."""

import pytest
import torch
from drawn_roads import make_batch
from mmengine.dataset import pseudo_collate
from test_lstr import SIZE, build

from taskptq.bench.robustness.attacking import task_loss
from taskptq.calibration import calibrate
from taskptq.engine.pipeline import prepare_in_place, run_batch
from taskptq.engine.recipe import Recipe
from taskptq.recipes import resolve
from taskptq.reconstruction import freeze
from taskptq.robustness.attacks import attack


@pytest.mark.parametrize('recipe', [None, 'w4a8_mse'])
def test_losses_of_lanes_are_raised(recipe):
    torch.manual_seed(0)
    model, batch = build().eval(), make_batch(SIZE)
    if recipe is not None:
        settings = resolve(recipe)['qconfig']
        prepare_in_place(model, Recipe.from_config(settings).qconfig)
        calibrate(model, [batch], forward=run_batch)
        freeze(model)
    samples = [
        {'inputs': image, 'data_samples': sample}
        for image, sample in zip(
            batch['inputs'], batch['data_samples'], strict=True
        )
    ]
    images = [image.float() for image in batch['inputs']]
    loss = task_loss(model, samples, collate=pseudo_collate)
    before = loss(images).item()
    raised = {
        kind: loss(attack(kind, images, loss, epsilon=8.0, seed=0)).item()
        for kind in ('random', 'fgsm', 'pgd')
    }
    gained = min(raised['fgsm'], raised['pgd'])
    assert gained > max(before, raised['random'])
