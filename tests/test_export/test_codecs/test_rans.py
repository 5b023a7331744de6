"""rANS: round trips, its size over the entropy, its end check."""

import numpy as np
import pytest

from taskptq.export.codecs import CodecError, Coder, Layout
from taskptq.export.codecs.histograms import entropy_bits, histograms
from taskptq.export.codecs.rans import (
    MAX_LANES,
    decode_stream,
    encode_stream,
    fit_model,
    num_lanes,
    read_model,
    write_model,
)


def normal(bits, parts):
    rng = np.random.default_rng(0)
    whole = np.concatenate(
        [rng.normal(0, 2**bits / (6 + i % 3), n) for i, n in enumerate(parts)]
    )
    middle = 2 ** (bits - 1)
    found = np.clip(np.rint(whole) + middle, 0, 2**bits - 1)
    return found.astype(np.uint8)


@pytest.mark.parametrize('bits', [2, 3, 4, 8])
def test_size_is_within_a_hundredth_of_entropy_and_tables(bits):
    parts = (120_000, 60_000, 90_000)
    layout = Layout(bits, parts)
    codes = normal(bits, parts)
    model = fit_model(codes, layout=layout)
    data = encode_stream(codes, layout=layout, model=model)
    back = decode_stream(data, layout=layout, model=model)
    np.testing.assert_array_equal(back, codes)
    counts = histograms(codes, parts=parts, num_symbols=2**bits)
    entropy = entropy_bits(counts).sum() / 8
    assert len(data) < 1.01 * entropy


def test_one_symbol_costs_next_to_nothing():
    layout = Layout(4, (10_000,))
    codes = np.full(10_000, 7, dtype=np.uint8)
    model = fit_model(codes, layout=layout)
    data = encode_stream(codes, layout=layout, model=model)
    assert len(data) < 200
    back = decode_stream(data, layout=layout, model=model)
    np.testing.assert_array_equal(back, codes)


@pytest.mark.parametrize('count', [1, 3, 4, 5, 255, 256, 1023, 5000, 70_001])
def test_ragged_ends(count):
    layout = Layout(4, (count,))
    codes = normal(4, (count,))
    model = fit_model(codes, layout=layout)
    data = encode_stream(codes, layout=layout, model=model)
    back = decode_stream(data, layout=layout, model=model)
    np.testing.assert_array_equal(back, codes)


def test_lanes_grow_with_the_section():
    assert num_lanes(1) == 1
    assert num_lanes(10_000) == 39
    assert num_lanes(2**20) == 512
    assert num_lanes(2**40) == MAX_LANES


def test_cut_and_lengthened_streams_are_refused():
    layout = Layout(4, (6000,))
    codes = normal(4, (6000,))
    model = fit_model(codes, layout=layout)
    data = encode_stream(codes, layout=layout, model=model)
    for bad in (data[:-2], data + b'\0\0', data[2:], b'\0\0\0' + data[3:]):
        with pytest.raises((CodecError, ValueError)):
            decode_stream(bad, layout=layout, model=model)


def test_models_are_read_back():
    layout = Layout(3, (900, 900, 5))
    codes = np.concatenate(
        [np.full(900, 1), np.arange(900) % 8, np.full(5, 1)]
    ).astype(np.uint8)
    model = fit_model(codes, layout=layout)
    assert len(model.tables) == 2
    back, rest = read_model(write_model(model) + b'rest', layout=layout)
    assert rest == b'rest'
    assert back.of_part == model.of_part
    np.testing.assert_array_equal(back.tables, model.tables)
    data = bytearray(write_model(model))
    data[1] = 9
    with pytest.raises(CodecError, match='lacks'):
        read_model(bytes(data), layout=layout)


def test_wide_codes_are_for_others():
    coder = Coder(['rans'])
    assert (
        coder.codecs[0].encode(
            np.zeros(3, np.uint16), layout=Layout(9, (3,)), coder=coder
        )
        is None
    )
    with pytest.raises(CodecError, match='too wide'):
        coder.decode(b'\0\0', layout=Layout(9, (3,)))
