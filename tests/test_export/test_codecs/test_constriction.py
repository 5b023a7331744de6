"""Sections in the coder of the package constriction."""

import numpy as np
import pytest

from taskptq.export.codecs import CodecError, Coder, Layout

pytest.importorskip('constriction')


@pytest.fixture
def coder():
    return Coder(['constriction'])


def test_size_is_that_of_rans_without_lanes(coder):
    rng = np.random.default_rng(0)
    codes = rng.binomial(15, 0.4, 50_000).astype(np.uint8)
    layout = Layout(4, (30_000, 20_000))
    data = coder.encode(codes, layout=layout)
    other = Coder(['rans']).encode(codes, layout=layout)
    assert len(data) < len(other) < 1.01 * len(data)
    np.testing.assert_array_equal(coder.decode(data, layout=layout), codes)


def test_words_left_over_are_refused(coder):
    codes = np.arange(3000, dtype=np.uint8) % 16
    layout = Layout(4, (3000,))
    data = coder.encode(codes, layout=layout)
    with pytest.raises(CodecError):
        coder.decode(data + b'\1\1\1\1', layout=layout)
    with pytest.raises(CodecError, match='too wide'):
        coder.decode(data, layout=Layout(9, (3000,)))
