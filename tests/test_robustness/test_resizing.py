import numpy as np
import pytest

from taskptq.robustness.resizing import METHODS, resize, resize_method_of


def row(*values):
    return np.array(values, np.uint8)[None, :, None].repeat(3, axis=2)


def first(image):
    return image[0, :, 0].tolist()


@pytest.mark.parametrize(
    ('method', 'samples'),
    [
        ('opencv-nearest', [0, 1, 3]),
        ('opencv-nearest-exact', [0, 2, 4]),
        ('pillow-nearest', [0, 2, 4]),
    ],
)
def test_nearest_takes_another_sample_in_each_library(method, samples):
    found = resize(row(0, 1, 2, 3, 4), (1, 3), method=method)
    assert first(found) == samples


def test_enlarging_vectors():
    small = row(0, 4, 8, 4)
    nearest = resize(small, (1, 8), method='opencv-nearest')
    assert first(nearest) == [0, 0, 4, 4, 8, 8, 4, 4]
    for method in ('opencv-bilinear', 'pillow-bilinear', 'torch-bilinear'):
        found = resize(small, (1, 8), method=method)
        assert first(found) == [0, 1, 3, 5, 7, 7, 5, 4]


def test_pillow_and_antialias_average_where_opencv_skips():
    stripes = row(*[0, 255] * 32)
    for method in ('pillow-bilinear', 'torch-antialias', 'opencv-area'):
        found = resize(stripes, (1, 8), method=method)
        assert np.abs(found.astype(int) - 127).max() < 30
    skipped = resize(stripes, (1, 8), method='opencv-nearest')
    assert set(first(skipped)) == {0}


@pytest.mark.parametrize('method', METHODS)
def test_the_method_is_found_by_its_result(method):
    image = np.random.default_rng(0).integers(0, 256, (23, 31, 3), np.uint8)
    result = resize(image, (11, 17), method=method)
    assert result.shape == (11, 17, 3)
    found = resize_method_of(image, result)
    assert np.array_equal(resize(image, (11, 17), method=found), result)


def test_a_padding_is_no_resize():
    image = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    padded = np.pad(image, ((0, 7), (0, 7), (0, 0)))
    assert resize_method_of(image, padded) is None
    with pytest.raises(ValueError, match="'cubic' is unknown"):
        resize(image, (4, 4), method='cubic')
