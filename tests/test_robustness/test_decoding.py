import io

import numpy as np
import pytest
from PIL import Image

from taskptq.robustness.decoding import DECODERS, decode, is_jpeg


@pytest.fixture(scope='module')
def jpeg():
    """A file with colored edges and chroma at half resolution."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (8, 10, 3), dtype=np.uint8)
    image = blocks.repeat(8, axis=0).repeat(8, axis=1)
    file = io.BytesIO()
    Image.fromarray(image).save(file, 'JPEG', quality=90, subsampling=2)
    return file.getvalue()


def test_pillow_and_opencv_give_the_same_bits(jpeg):
    reference = decode(jpeg, 'opencv')
    assert reference.shape == (64, 80, 3)
    assert np.array_equal(decode(jpeg, 'pillow'), reference)


@pytest.mark.parametrize(
    ('decoder', 'package'),
    [
        ('fast-dct', 'simplejpeg'),
        ('fast-upsample', 'simplejpeg'),
        ('fast', 'simplejpeg'),
        ('ffmpeg', 'av'),
    ],
)
def test_others_differ_a_little(jpeg, decoder, package):
    pytest.importorskip(package)
    reference = decode(jpeg, 'opencv').astype(int)
    error = np.abs(decode(jpeg, decoder).astype(int) - reference)
    assert error.max() > 0
    assert error.mean() < 12


def test_refusals(jpeg):
    assert is_jpeg(jpeg)
    assert not is_jpeg(b'\x89PNG')
    assert 'dali' not in DECODERS
    with pytest.raises(ValueError, match="decoder 'dali' is unknown"):
        decode(jpeg, 'dali')
    with pytest.raises(ValueError, match='cannot decode'):
        decode(b'\xff\xd8\xff', 'opencv')
