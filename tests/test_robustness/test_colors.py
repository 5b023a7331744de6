import numpy as np
import pytest

from taskptq.robustness.colors import from_yuv, round_trip, to_yuv


@pytest.mark.parametrize(
    ('color', 'yuv', 'back'),
    [
        ((255, 0, 0), (81, 90, 240), (254, 0, 0)),
        ((0, 255, 0), (145, 54, 34), (0, 255, 1)),
        ((123, 116, 103), (116, 121, 132), (123, 116, 102)),
        ((255, 255, 255), (235, 128, 128), (255, 255, 255)),
        ((0, 0, 0), (16, 128, 128), (0, 0, 0)),
    ],
)
def test_vectors(color, yuv, back):
    found = to_yuv(np.array(color))
    assert tuple(found) == yuv
    assert tuple(from_yuv(found)) == back


def test_the_integer_form_keeps_red():
    red = np.full((2, 2, 3), (255, 0, 0), np.uint8)
    assert np.array_equal(round_trip(red, 'yuv444-integer'), red)


def test_nv12_mixes_the_colors_of_a_block():
    block = np.zeros((2, 2, 3), np.uint8)
    block[0, :, 0] = block[1, :, 2] = 255
    found = round_trip(block, 'nv12')
    assert found[0].tolist() == [[151, 23, 150]] * 2
    assert found[1].tolist() == [[104, 0, 104]] * 2


def test_errors_on_random_colors():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (256, 256, 3), dtype=np.uint8)
    error = np.abs(round_trip(image, 'yuv444').astype(int) - image)
    assert error.reshape(-1, 3).max(axis=0).tolist() == [1, 1, 2]
    mean = error.reshape(-1, 3).mean(axis=0)
    assert np.allclose(mean, [0.42, 0.26, 0.51], atol=0.02)
    same = (error == 0).all(axis=2).mean()
    assert same == pytest.approx(0.159, abs=0.01)


@pytest.mark.parametrize('space', ['nv12', 'opencv-i420'])
def test_odd_sizes_keep_their_size_and_gray_stays(space):
    gray = np.full((5, 7, 3), 100, np.uint8)
    found = round_trip(gray, space)
    assert found.shape == gray.shape
    assert np.abs(found.astype(int) - gray).max() <= 1
    with pytest.raises(ValueError, match="color space 'rgb' is unknown"):
        round_trip(gray, 'rgb')
