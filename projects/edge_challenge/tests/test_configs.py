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


def test_the_stand_in_is_exported_at_its_size(
    repo_root, monkeypatch, tmp_path
):
    import onnxruntime

    from taskptq import apis
    from taskptq.export.onnx import export_onnx

    monkeypatch.chdir(repo_root)
    config = apis.read_config(
        'projects/edge_challenge/configs/fast-scnn_camvid.py'
    )
    model = apis.build_model(config).eval()
    x = torch.rand(1, 3, 192, 256)
    path = tmp_path / 'net.onnx'
    # Its pyramid takes 6 x 6 bins of a map of 6 x 8.
    export_onnx(model, (x,), path, input_names=['x'], output_names=['y'])
    (got,) = onnxruntime.InferenceSession(str(path)).run(
        None, {'x': x.numpy()}
    )
    with torch.no_grad():
        torch.testing.assert_close(
            torch.from_numpy(got), model(x), atol=1e-4, rtol=1e-4
        )
    assert got.shape[1] == len(config.metainfo.classes)
    assert config.test_evaluator.type == 'LPCVCMetric'
