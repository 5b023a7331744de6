import pytest
import torch


@pytest.fixture
def config(repo_root, monkeypatch):
    from taskptq.apis import read_config

    monkeypatch.chdir(repo_root)
    return read_config('projects/edge_challenge/configs/fast-scnn_lpcvc.py')


def test_the_model_is_small_and_quantizes(config):
    from taskptq import apis
    from taskptq.modules.base import quant_modules

    model = apis.build_model(config)
    weights = sum(p.numel() for p in model.parameters())
    assert 1.2e6 < weights < 1.6e6
    batches = [
        {
            'inputs': torch.rand(1, 3, 64, 64),
            'mode': 'tensor',
        }
    ]
    quantized, report = apis.quantize(
        model,
        batches,
        recipe='w8a8_minmax',
        forward=lambda net, batch: net(**batch),
    )
    with torch.no_grad():
        logits = quantized(batches[0]['inputs'])
    assert logits.shape[1] == 14
    assert len(list(quant_modules(quantized))) > 20
    assert report['calibration']


def test_the_data_are_at_half_size(config):
    assert config.image_scale == (256, 256)
    assert config.test_dataloader.dataset.type == 'LPCVCDataset'
    assert config.test_evaluator.type == 'LPCVCMetric'
