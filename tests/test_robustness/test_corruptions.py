import numpy as np
import pytest

from taskptq.robustness.corruptions import (
    CORRUPTIONS,
    GROUPS,
    VALIDATION,
    corrupt,
    image_seed,
)


def global_state():
    return np.random.get_state()[1].tolist()  # noqa: NPY002


@pytest.fixture
def image():
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)
    return blocks.repeat(8, axis=0).repeat(8, axis=1)


def test_fifteen_and_four():
    assert len(CORRUPTIONS) == 15
    assert len(VALIDATION) == 4
    assert list(map(len, GROUPS.values())) == [3, 4, 4, 4]


@pytest.mark.parametrize('name', [*CORRUPTIONS, *VALIDATION])
def test_the_seed_alone_decides(image, name):
    pytest.importorskip('imagecorruptions')
    state = global_state()
    first = corrupt(image, name=name, severity=3, seed=5)
    assert global_state() == state
    np.random.rand(3)  # noqa: NPY002 - moves the global state
    again = corrupt(image, name=name, severity=3, seed=5)
    assert first.dtype == np.uint8
    assert first.shape == image.shape
    assert np.array_equal(first, again)
    assert not np.array_equal(first, image)


@pytest.mark.parametrize('name', ['impulse_noise', 'glass_blur', 'frost'])
def test_another_seed_gives_another_image(image, name):
    pytest.importorskip('imagecorruptions')
    one, two = (
        corrupt(image, name=name, severity=3, seed=seed) for seed in (1, 2)
    )
    assert not np.array_equal(one, two)


def test_small_images_keep_their_size(image):
    pytest.importorskip('imagecorruptions')
    small = image[:9, :40]
    assert corrupt(small, name='fog', severity=2, seed=0).shape == small.shape


def test_severity_zero_and_refusals(image):
    assert corrupt(image, name='fog', severity=0, seed=0) is image
    with pytest.raises(ValueError, match="corruption 'rain' is unknown"):
        corrupt(image, name='rain', severity=1, seed=0)
    with pytest.raises(ValueError, match='severity 6 of fog must be 0 to 5'):
        corrupt(image, name='fog', severity=6, seed=0)


def test_seeds_differ_by_image_noise_and_run():
    seeds = {
        image_seed(name, noise=noise, seed=seed)
        for name in ('a.jpg', 'b.jpg')
        for noise in ('fog=1', 'fog=2')
        for seed in (0, 1)
    }
    assert len(seeds) == 8
    assert image_seed(7, noise='fog=1') == image_seed('7', noise='fog=1')
