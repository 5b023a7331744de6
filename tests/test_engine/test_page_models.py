"""The models and images that a page is measured on."""

import pytest
import torch

import taskptq
from taskptq.engine.page_models import PageModels, class_names
from taskptq.engine.pipeline import run_batch
from taskptq.export.quantized_file import open_file
from taskptq.modules.base import quant_modules


@pytest.fixture
def file(tiny_config, float_checkpoint, tmp_path, qconfig):
    taskptq.quantize(
        tiny_config,
        float_checkpoint,
        qconfig=qconfig,
        calibration=dict(num_images=8),
        out=tmp_path / 'q.pth',
    )
    return open_file(tmp_path / 'q.pth')


def models(config, path):
    return PageModels(config, float_path=path, device='cpu', trust=False)


def test_the_twin_computes_what_the_float_model_does(
    file, tiny_config, float_checkpoint
):
    made = models(tiny_config, float_checkpoint)
    twin, clean = made.twin(file), made.float_model()
    noisy = made.quantized(file)
    assert [n for n, _ in quant_modules(twin)] == [
        n for n, _ in quant_modules(noisy)
    ]
    (batch,) = made.batches(1)
    outputs = []
    for model in (clean, twin, noisy):
        with torch.no_grad():
            found = run_batch(model.eval(), batch)
        outputs.append(torch.stack([one['logits'] for one in found]))
    assert torch.allclose(outputs[0], outputs[1], atol=1e-5)
    assert not torch.allclose(outputs[0], outputs[2], atol=1e-5)


def test_other_layers_have_no_twin(file, tiny_config, float_checkpoint):
    file.payload['structure']['rewrites'] = [{'rewrite': 'ChannelSplit'}]
    with pytest.raises(ValueError, match='which layers there are'):
        models(tiny_config, float_checkpoint).twin(file)


def test_without_float_weights(file, tiny_config):
    made = models(tiny_config, None)
    assert made.float_model() is None
    assert made.twin(file) is None


def test_images_are_spaced_evenly(tiny_config):
    made = models(tiny_config, None)
    # The test set has eight images.
    assert len(made.batches(3)) == 3
    assert len(made.batches(100)) == 8
    first, second = made.batches(2)
    assert not torch.equal(first['inputs'][0], second['inputs'][0])


@pytest.mark.parametrize(
    ('meta', 'names'),
    [
        ({'dataset_meta': {'classes': ['a', 'b']}}, ['a', 'b']),
        ({'dataset_meta': {'classes': 3}}, []),
        ({'dataset_meta': 'x'}, []),
        ({}, []),
    ],
)
def test_class_names_of_a_file(meta, names, file):
    file.payload['meta'].clear()
    file.payload['meta'].update(meta)
    assert class_names(file) == names
