import numpy as np
import pytest

pytest.importorskip('mmdet')
pytest.importorskip('cv2')

import cv2
from mmdet.models import DetDataPreprocessor
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DefaultScope

from taskptq.engine.onnx_preprocess import (
    prepare_image,
    preprocessing,
    read_image,
)


class Model:
    def __init__(self, **options):
        self.data_preprocessor = DetDataPreprocessor(**options)


NORMAL = dict(mean=[10.0, 20, 30], std=[50.0, 60, 70])
PIPELINES = {
    'keep': [dict(type='Resize', scale=(96, 64), keep_ratio=True)],
    'exact': [dict(type='Resize', scale=(96, 64), keep_ratio=False)],
    'square': [
        dict(type='Resize', scale=(64, 64), keep_ratio=True),
        dict(type='Pad', pad_to_square=True, pad_val=dict(img=(114.0,) * 3)),
    ],
    'size': [
        dict(type='Resize', scale=(50, 60), keep_ratio=True),
        dict(type='Pad', size=(80, 70), pad_val=3),
    ],
    'divisor': [dict(type='Pad', size_divisor=32)],
    'none': [],
}


@pytest.fixture
def image(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 3), np.uint8)
    path = tmp_path / 'image.png'
    path.write_bytes(cv2.imencode('.png', pixels)[1].tobytes())
    return path


@pytest.mark.parametrize('name', list(PIPELINES))
@pytest.mark.parametrize(
    'options',
    [
        dict(pad_size_divisor=32),
        dict(**NORMAL, bgr_to_rgb=True, pad_size_divisor=16, pad_value=5),
        NORMAL,
    ],
)
def test_images_are_prepared_as_by_the_host(name, options, image):
    load, pack = dict(type='LoadImageFromFile'), dict(type='PackDetInputs')
    labels = dict(type='LoadAnnotations', with_bbox=True)
    model = Model(**options)
    steps = preprocessing(model, [load, *PIPELINES[name], labels, pack])
    found = prepare_image(read_image(image), steps)
    with DefaultScope.overwrite_default_scope('mmdet'):
        host = Compose([load, *PIPELINES[name], pack])
    sample = host({'img_path': str(image), 'img_id': 0})
    expected = model.data_preprocessor(pseudo_collate([sample]), False)
    meta = sample['data_samples'].metainfo
    np.testing.assert_allclose(found.pixels, expected['inputs'], atol=1e-5)
    assert found.original_shape == meta['ori_shape']
    if name in ('keep', 'exact', 'none'):
        assert found.image_shape == meta['img_shape']
    if 'scale_factor' in meta:
        np.testing.assert_allclose(found.scale, meta['scale_factor'])


@pytest.mark.parametrize(
    'transform',
    [
        dict(type='Resize', scale_factor=2.0),
        dict(type='RandomFlip', prob=0.5),
        dict(type='Normalize', mean=[0], std=[1]),
    ],
)
def test_other_pipelines_take_the_host(transform):
    assert preprocessing(Model(), [transform]) is None


def test_a_model_without_a_preprocessor_takes_the_host():
    assert preprocessing(object(), []) is None


def test_what_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match='there is no image'):
        read_image(tmp_path / 'x.png')
    path = tmp_path / 'x.png'
    path.write_bytes(b'text')
    with pytest.raises(ValueError, match='is not an image'):
        read_image(path)
    with pytest.raises(ValueError, match="images by 'twist'"):
        prepare_image(np.zeros((2, 2, 3), np.uint8), [{'step': 'twist'}])
