"""Sparse sections: a mask, and the codes that remain."""

import numpy as np
import pytest

from taskptq.export.codecs import CodecError, Coder, Layout, codec_names
from taskptq.export.codecs.registry import code_dtype
from taskptq.export.codecs.zeros import run_bytes, run_mask

ALL = ['dense', 'rans', 'planes', 'zeros']


def sparse(rate, *, bits=8, size=20_000, zero=0):
    generator = np.random.default_rng(0)
    codes = generator.integers(1, 1 << bits, size, dtype=np.uint64)
    codes = codes.astype(code_dtype(bits))
    codes[generator.random(size) < rate] = zero
    return codes


@pytest.mark.parametrize('bits', [3, 8, 16, 32])
@pytest.mark.parametrize('rate', [0.5, 0.7, 0.95, 1.0])
def test_sparse_sections_come_back(bits, rate):
    codes = sparse(rate, bits=bits, zero=5)
    layout = Layout(bits, (12_000, 0, 8_000))
    coder = Coder(ALL)
    data = coder.encode(codes, layout=layout)
    np.testing.assert_array_equal(coder.decode(data, layout=layout), codes)
    assert len(data) < layout.num_bytes
    assert data == coder.encode(codes, layout=layout)


def test_random_values_take_their_mask_and_themselves():
    """At 70 %, entropy .88 bits of mask and .3 x 32 bits of values."""
    codes = sparse(0.7, bits=32)
    layout = Layout(32, (len(codes),))
    coder = Coder(['dense', 'zeros'])
    data = coder.encode(codes, layout=layout)
    assert coder.codec_of(data) == 'zeros'
    assert len(data) * 8 / len(codes) == pytest.approx(1 + 0.3 * 32, rel=0.02)


def test_few_values_are_listed_by_runs():
    codes = np.zeros(100_000, dtype=np.uint32)
    codes[::1000] = 7
    coder = Coder(['dense', 'zeros'])
    layout = Layout(32, (len(codes),))
    data = coder.encode(codes, layout=layout)
    assert len(data) < 100_000 / 8 / 10  # a tenth of the bitmap
    np.testing.assert_array_equal(coder.decode(data, layout=layout), codes)


def test_dense_sections_are_left_to_others():
    codes = sparse(0.1)
    coder = Coder(ALL)
    data = coder.encode(codes, layout=Layout(8, (len(codes),)))
    assert coder.codec_of(data) != 'zeros'
    assert 'zeros' in codec_names('auto')
    assert 'zeros' not in codec_names('dense')


@pytest.mark.parametrize('gap', [0, 1, 254, 255, 256, 509, 510, 511, 5000])
def test_runs_of_any_length(gap):
    mask = np.zeros(2 * gap + 5, dtype=np.bool_)
    mask[gap] = mask[gap + 1] = mask[2 * gap + 2] = True
    runs = run_bytes(mask)
    np.testing.assert_array_equal(run_mask(runs, length=len(mask)), mask)
    empty = np.zeros(7, dtype=np.bool_)
    assert not len(run_bytes(empty))
    np.testing.assert_array_equal(run_mask(run_bytes(empty), length=7), empty)


def test_crafted_runs_are_refused():
    with pytest.raises(CodecError, match='ends within a run'):
        run_mask(np.array([3, 255], np.uint8), length=9)
    with pytest.raises(CodecError, match='runs beyond its end'):
        run_mask(np.array([3, 200], np.uint8), length=9)


def test_damage_is_refused_or_gives_codes_of_the_declared_size():
    codes = sparse(0.8, size=600)
    layout = Layout(8, (600,))
    coder = Coder(['dense', 'zeros'])
    data = coder.encode(codes, layout=layout)
    assert coder.codec_of(data) == 'zeros'
    for place in range(1, len(data)):
        for value in (0, 255, data[place] ^ 1):
            broken = data[:place] + bytes([value]) + data[place + 1 :]
            try:
                found = coder.decode(broken, layout=layout)
            except CodecError:
                continue
            assert found.shape == (600,)
    for length in range(len(data)):
        with pytest.raises(CodecError):
            coder.decode(data[:length], layout=layout)


def test_a_mask_of_another_count_is_refused():
    coder = Coder(['dense', 'zeros'])
    layout = Layout(8, (600,))
    data = coder.encode(sparse(0.8, size=600), layout=layout)
    broken = bytearray(data)
    broken[9] ^= 1  # number of codes that remain
    with pytest.raises(CodecError, match='another number of codes'):
        coder.decode(bytes(broken), layout=layout)
