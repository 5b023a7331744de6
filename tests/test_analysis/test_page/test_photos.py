"""Images as data URIs."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from taskptq.analysis.page.photos import (
    MAX_SIDE,
    class_colors,
    overlay,
    photo,
    read_image,
)


def decoded(uri, kind):
    head, _, text = uri.partition(',')
    assert head == f'data:image/{kind};base64'
    return Image.open(io.BytesIO(base64.b64decode(text)))


def test_a_photo_is_small():
    image = np.zeros((1000, 2000, 3), np.uint8)
    assert decoded(photo(image), 'jpeg').size == (MAX_SIDE, MAX_SIDE // 2)


def test_an_overlay_lets_the_rest_through():
    classes = np.full((4, 6), -1)
    classes[0], classes[1] = 1, 255
    uri = overlay(classes, colors=[(1, 2, 3), (200, 100, 0)], opacity=0.5)
    pixels = np.asarray(decoded(uri, 'png').convert('RGBA'))
    assert pixels.shape == (4, 6, 4)
    assert pixels[0, 0].tolist() == [200, 100, 0, 128]
    assert (pixels[1:, :, 3] == 0).all()


@pytest.mark.parametrize('content', [None, b'no image', b''])
def test_files_that_are_no_images(content, tmp_path):
    path = tmp_path / 'x.jpg'
    if content is not None:
        path.write_bytes(content)
    assert read_image(path) is None


def test_gray_images_become_rgb(tmp_path):
    Image.new('L', (6, 4), 9).save(tmp_path / 'x.png')
    assert read_image(tmp_path / 'x.png').shape == (4, 6, 3)


def test_neighboring_classes_differ():
    colors = np.asarray(class_colors(20), float)
    steps = np.abs(np.diff(colors, axis=0)).sum(axis=1)
    assert (steps > 60).all()
