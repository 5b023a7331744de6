"""All codecs: exact, bounded, refused by name."""

import numpy as np
import pytest

from taskptq.export.codecs import (
    CHOICES,
    CodecError,
    Coder,
    Layout,
    MissingCodecError,
    chosen_codecs,
    codec_names,
    register_codec,
    registry,
)
from taskptq.export.codecs.registry import Codec, code_dtype

AVAILABLE = [
    name for name, codec in registry.CODECS.items() if codec.available()
]
CHOSEN = [c for c in CHOICES if c == 'auto' or c in AVAILABLE]


def draw(bits, parts, *, seed=0):
    """Normal codes of a sixth of the range, each part with its own mean."""
    rng = np.random.default_rng(seed)
    top = 2**bits - 1
    found = [
        np.clip(np.rint(rng.normal(top / (2 + i % 3), top / 6, n)), 0, top)
        for i, n in enumerate(parts)
    ]
    whole = np.concatenate([np.zeros(0), *found])
    return whole.astype(np.uint64).astype(code_dtype(bits))


@pytest.mark.parametrize('choice', CHOSEN)
@pytest.mark.parametrize(
    ('bits', 'parts'),
    [
        (1, (3000,)),
        (2, (700, 0, 6000)),
        (3, (1,)),
        (4, (5000, 301, 9000)),
        (5, (40_000,)),
        (8, (2000, 3000)),
        (11, (700,)),
        (16, (500, 40)),
        (32, (300,)),
        (53, (20, 30)),
        (4, ()),
        (8, (0, 0)),
    ],
)
def test_every_codec_is_exact(choice, bits, parts):
    layout = Layout(bits, parts)
    codes = draw(bits, parts)
    writer = chosen_codecs(choice)
    data = writer.encode(codes, layout=layout)
    reader = Coder(writer.names)
    back = reader.decode(data, layout=layout)
    assert back.dtype == code_dtype(bits)
    np.testing.assert_array_equal(back, codes)
    dense = chosen_codecs('dense').encode(codes, layout=layout)
    assert len(data) <= len(dense)


@pytest.mark.parametrize('name', [n for n in AVAILABLE if n != 'dense'])
def test_every_codec_takes_part_where_it_is_shorter(name):
    bits = 32 if name == 'planes' else 4
    layout = Layout(bits, (20_000,))
    values = np.random.default_rng(0).normal(0, 0.1, 20_000)
    codes = draw(4, (20_000,))
    if bits == 32:
        codes = values.astype(np.float32).view(np.uint32)
    if name == 'zeros':
        codes[np.abs(values) < 0.1] = 0
    coder = Coder(['dense', *(['rans'] if bits == 32 else []), name])
    assert coder.codec_of(coder.encode(codes, layout=layout)) == name


@pytest.mark.parametrize('name', AVAILABLE)
def test_damaged_sections_raise_one_error_or_other_codes(name):
    bits = 12 if name == 'planes' else 3
    layout = Layout(bits, (900, 400))
    coder = Coder(['dense', 'rans', name])
    codes = draw(bits, layout.parts)
    codec = registry.CODECS[name]
    body = codec.encode(codes, layout=layout, coder=coder)
    data = bytes([2]) + body
    rng = np.random.default_rng(1)
    refused = 0
    for i in range(150):
        bad = bytearray(data)
        if i % 3 == 0:
            bad = bad[: rng.integers(len(bad))]
        else:
            bad[rng.integers(len(bad))] ^= 1 << rng.integers(8)
        try:
            back = coder.decode(bytes(bad), layout=layout)
        except CodecError:
            refused += 1
        else:
            assert back.shape == codes.shape
            assert back.max() < 2**bits
    assert refused >= 50


def test_claims_beyond_the_bytes_are_refused_before_any_work():
    coder = chosen_codecs('auto')
    data = coder.encode(np.zeros(4000, np.uint8), layout=Layout(4, (4000,)))
    with pytest.raises(CodecError, match='declares 1,099,511,627,776 bytes'):
        coder.decode(data, layout=Layout(4, (1 << 40,)))


def test_a_section_of_zeros_keeps_to_the_readers_limit():
    layout = Layout(4, (1 << 20,))
    codes = np.zeros(1 << 20, np.uint8)
    coder = chosen_codecs('auto')
    data = coder.encode(codes, layout=layout)
    assert len(data) < 1 << 18
    np.testing.assert_array_equal(coder.decode(data, layout=layout), codes)


def test_missing_codecs_are_named(monkeypatch):
    with pytest.raises(MissingCodecError, match=r'codec .pack2..*install'):
        Coder(['dense', 'pack2'])
    zstd = registry.CODECS['zstd']
    monkeypatch.setattr(zstd, 'available', lambda: False)
    with pytest.raises(MissingCodecError, match='pip install zstandard'):
        Coder(['zstd'])
    with pytest.raises(MissingCodecError, match='pip install zstandard'):
        codec_names('zstd')
    with pytest.raises(ValueError, match=r"codec='lzw'.*dense, auto, rans"):
        codec_names('lzw')


def test_auto_needs_no_package():
    chosen = codec_names('auto')
    assert chosen[0] == 'dense'
    assert {'rans', 'planes'} <= set(chosen)
    assert not any(registry.CODECS[name].package for name in chosen)


def test_wrong_results_of_a_codec_are_refused(monkeypatch):
    monkeypatch.setattr(registry, 'CODECS', dict(registry.CODECS))

    @register_codec
    class Liar(Codec):
        name = 'liar'

        def decode(self, data, *, layout, coder):
            return np.full(len(data), data[0], dtype=np.uint8)

    coder = Coder(['liar'])
    assert coder.decode(b'\0\3\3', layout=Layout(2, (2,))).tolist() == [3, 3]
    with pytest.raises(CodecError, match='another number'):
        coder.decode(b'\0\3\3', layout=Layout(2, (3,)))
    with pytest.raises(CodecError, match='more than 2 bits'):
        coder.decode(b'\0\4\4', layout=Layout(2, (2,)))
    with pytest.raises(CodecError, match='empty'):
        coder.decode(b'\1', layout=Layout(2, (1,)))
    with pytest.raises(ValueError, match='already'):
        register_codec(Liar)


def test_nesting_ends():
    words = Layout(16, (64,))
    # Four bytes of length, then a stream that begins the same way.
    nested = b'\1' * 40
    with pytest.raises(CodecError):
        Coder(['dense', 'planes']).decode(nested, layout=words)
    coder = Coder(['dense'])
    coder._depth = registry.MAX_NESTING
    with pytest.raises(CodecError, match='nests'):
        coder.decode(b'\0' * 129, layout=words)


def test_codes_have_to_match_their_parts():
    with pytest.raises(ValueError, match='3'):
        chosen_codecs('dense').encode(
            np.zeros(2, np.uint8), layout=Layout(8, (3,))
        )
    with pytest.raises(ValueError, match='add dense'):
        Coder(['rans']).encode(np.zeros(2, np.uint16), layout=Layout(12, (2,)))
    with pytest.raises(ValueError, match='wider than 64'):
        code_dtype(65)
