"""Words in planes, and streams in streams."""

import numpy as np
import pytest

from taskptq.export.codecs import CodecError, Coder, Layout
from taskptq.export.codecs.planes import join_streams, split_streams


def test_float_exponents_get_shorter():
    values = np.random.default_rng(0).normal(0, 0.1, 5000).astype(np.float32)
    words, layout = values.view(np.uint32), Layout(32, (5000,))
    coder = Coder(['dense', 'rans', 'planes'])
    data = coder.encode(words, layout=layout)
    assert coder.codec_of(data) == 'planes'
    # Eight bits of exponent take about three; 24 others stay.
    assert len(data) < 5000 * 27.5 / 8
    back = coder.decode(data, layout=layout)
    np.testing.assert_array_equal(back, words)


def test_streams_are_joined_and_split():
    streams = [b'ab', b'', b'xyz']
    assert split_streams(join_streams(streams), count=3) == streams
    with pytest.raises(CodecError, match='longer'):
        split_streams(b'\xff\0\0\0abc', count=2)
    with pytest.raises(CodecError, match='ends'):
        split_streams(b'\xff', count=2)


def test_single_bytes_are_not_split():
    coder = Coder(['planes'])
    with pytest.raises(CodecError, match='single byte'):
        coder.decode(b'\0' * 9, layout=Layout(8, (8,)))
