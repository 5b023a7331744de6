"""Sections in the coder of the package zstandard."""

import numpy as np
import pytest

from taskptq.export.codecs import CodecError, Coder, Layout

pytest.importorskip('zstandard')


@pytest.fixture
def coder():
    return Coder(['zstd'])


def test_repeats_are_found_packed_or_whole(coder):
    row = np.random.default_rng(0).integers(0, 8, 999, dtype=np.uint8)
    codes, layout = np.tile(row, 20), Layout(3, (999 * 20,))
    data = coder.encode(codes, layout=layout)
    assert len(data) < 1500
    np.testing.assert_array_equal(coder.decode(data, layout=layout), codes)


def test_frames_that_promise_another_size_are_refused(coder):
    import zstandard

    layout = Layout(8, (5000,))
    frame = zstandard.ZstdCompressor().compress(bytes(100_000))
    with pytest.raises(CodecError, match='does not hold 5,000 bytes'):
        coder.decode(b'\0\1' + frame, layout=layout)
    with pytest.raises(CodecError, match='not a frame'):
        coder.decode(b'\0\1' + bytes(40), layout=layout)
    with pytest.raises(CodecError, match='not a section'):
        coder.decode(b'\0\7' + frame, layout=layout)
