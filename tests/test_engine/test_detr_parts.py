import copy
import sys

import pytest
import torch

pytest.importorskip('mmdet')
pytest.importorskip('mmcv.ops')

from exported_models import (
    assert_same,
    predictions,
    preprocessed,
    with_own_parts,
)
from mmengine.registry import MODELS, DefaultScope

from taskptq.engine.detr_parts import padding_mask
from taskptq.engine.network_parts import parts_of


@pytest.fixture
def build(registry_guard, monkeypatch, repo_root):
    monkeypatch.syspath_prepend(str(repo_root / 'tests' / 'tiny_task'))
    sys.modules.pop('tiny_detr', None)
    import tiny_detr

    def make(name):
        settings = copy.deepcopy(getattr(tiny_detr, name)())
        with DefaultScope.overwrite_default_scope('mmdet'):
            torch.manual_seed(0)
            model = MODELS.build(settings).eval()
            # DINO's level embedding is raw memory until this.
            model.init_weights()
            return model

    yield make
    sys.modules.pop('tiny_detr', None)


def batch_of(*sizes):
    from mmdet.structures import DetDataSample

    generator = torch.Generator().manual_seed(0)
    return {
        'inputs': [
            torch.randint(0, 256, (3, *size), generator=generator).byte()
            for size in sizes
        ],
        'data_samples': [
            DetDataSample(
                metainfo=dict(
                    img_shape=size,
                    ori_shape=size,
                    scale_factor=(1.0, 1.0),
                    img_id=0,
                )
            )
            for size in sizes
        ],
    }


UNEQUAL = ((64, 96), (48, 64))


def test_padding_is_where_no_image_is():
    batch = batch_of(*UNEQUAL)
    images = torch.zeros(2, 3, 64, 96)
    mask = padding_mask(images, batch['data_samples'])
    assert mask[0].sum() == 0
    assert mask[1, :48, :64].sum() == 0
    assert mask[1].sum() == 64 * 96 - 48 * 64


@pytest.mark.parametrize('name', ['detr', 'dino'])
@pytest.mark.parametrize('sizes', [UNEQUAL, ((64, 96), (64, 96))])
def test_masks_are_an_input(build, name, sizes):
    model = build(name)
    batch = batch_of(*sizes)
    # The example has no padding: the mask must not be frozen.
    data = preprocessed(model, batch_of((64, 96), (64, 96)))
    parts = parts_of(model).parts(data)
    assert parts[0].input_names == ('images', 'padding')
    host = with_own_parts(model, parts)
    assert_same(predictions(host, batch), predictions(model, batch), atol=1e-4)


def test_the_mask_decides_in_the_file(build, tmp_path):
    pytest.importorskip('onnxruntime')
    from taskptq.export.onnx import export_onnx
    from taskptq.export.runtime import Session, read_onnx

    model = build('detr')
    part = parts_of(model).parts(
        preprocessed(model, batch_of((64, 96), (64, 96)))
    )[0]
    path = tmp_path / 'detr.onnx'
    export_onnx(
        part.network,
        part.inputs,
        path,
        input_names=part.input_names,
        output_names=part.output_names,
        dynamic_axes=part.dynamic_axes,
    )
    session = Session(read_onnx(path))
    data = preprocessed(model, batch_of(*UNEQUAL, (32, 96)))
    mask = padding_mask(data['inputs'], data['data_samples'])
    with torch.no_grad():
        expected = part.network.named_outputs(data['inputs'], mask)
        unmasked = part.network.named_outputs(data['inputs'], 0 * mask)
    found = session(data['inputs'], mask)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-4)
        assert not torch.allclose(
            tensor[:, 1], unmasked[name][:, 1], atol=1e-3
        )
