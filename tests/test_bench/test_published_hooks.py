"""A quantization that no file can hold."""

import json

import pytest
import torch

from taskptq.bench.published_eval import quantize_as_published
from taskptq.engine.pipeline import Recipe, quantize_model

SETTINGS = dict(steps=3, batch_size=2, skip_below=0.0)


@pytest.fixture
def model(tiny_path):
    import importlib

    torch.manual_seed(0)
    return importlib.import_module('tiny_task').TinyNet()


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(3)
    return [
        {
            'inputs': list(torch.randn(4, 3, 8, 8, generator=generator)),
            'labels': [0] * 4,
        }
        for _ in range(2)
    ]


def test_it_is_marked_and_writes_no_model(model, batches, qconfig, tmp_path):
    recipe = Recipe.from_config(qconfig, reconstruction=SETTINGS)
    report = quantize_as_published(
        model, batches, recipe=recipe, work_dir=tmp_path
    )
    written = json.loads((tmp_path / 'published_eval_report.json').read_text())
    assert written == report
    assert report['published_eval']['dropping']
    assert {'freeze', 'file_bytes', 'checkpoint', 'digest'}.isdisjoint(report)
    assert not list(tmp_path.rglob('*.pth'))
    with torch.no_grad():
        one, two = (model.test_step(batches[0]) for _ in range(2))
    assert any(
        not torch.equal(a['logits'], b['logits'])
        for a, b in zip(one, two, strict=True)
    )
    with pytest.raises(RuntimeError, match='quantized already'):
        quantize_as_published(model, batches, recipe=recipe, work_dir=tmp_path)


def test_nothing_else_does_it(model, batches, qconfig, tmp_path):
    recipe = Recipe.from_config(qconfig, reconstruction=SETTINGS)
    report = quantize_model(model, batches, recipe=recipe, work_dir=tmp_path)
    assert 'published_eval' not in report
    assert report['freeze']['num_weights']


@pytest.mark.parametrize('settings', [None, dict(SETTINGS, rounding='gptq')])
def test_refuses_recipes_without_learned_rounding(
    model, batches, qconfig, tmp_path, settings
):
    recipe = Recipe.from_config(qconfig, reconstruction=settings)
    with pytest.raises(ValueError, match='learned roundings'):
        quantize_as_published(model, batches, recipe=recipe, work_dir=tmp_path)
