"""Words split into bytes of equal weight, each coded by itself.

The exponents of float32 numbers take few values, their mantissas all; side by
side in one stream they hide each other.
"""

from __future__ import annotations

import struct

import numpy as np

from taskptq.export.codecs.registry import (
    Codec,
    CodecError,
    Coder,
    Codes,
    Layout,
    code_dtype,
    register_codec,
)

__all__ = ['Planes', 'join_streams', 'split_streams']

# Of float32: the exponent straddles the two highest bytes.
_FLOAT_BITS = 32


def join_streams(streams: list[bytes]) -> bytes:
    """Join nested streams; all but the last are preceded by their length."""
    *first, last = streams
    framed = [struct.pack('<I', len(part)) + part for part in first]
    return b''.join([*framed, last])


def split_streams(data: bytes, *, count: int) -> list[bytes]:
    """Undo :func:`join_streams`.

    Raises:
        CodecError: If a length points beyond the end.
    """
    found: list[bytes] = []
    for _ in range(count - 1):
        if len(data) < 4:
            raise CodecError('ends within its streams')
        (length,) = struct.unpack_from('<I', data)
        if length > len(data) - 4:
            raise CodecError('has a stream that is longer than itself')
        found.append(data[4 : 4 + length])
        data = data[4 + length :]
    return [*found, data]


@register_codec
class Planes(Codec):
    """One nested stream for each byte of a word.

    The bits of 32-bit words are first rotated by one, which brings the eight
    bits of a float32 exponent into one byte.
    """

    name = 'planes'
    nests = True

    def encode(
        self, codes: Codes, *, layout: Layout, coder: Coder
    ) -> bytes | None:
        """Split and encode; None for codes of one byte."""
        if layout.bits <= 8 or not layout.num_codes:
            return None
        words = codes
        if layout.bits == _FLOAT_BITS:
            words = (codes << np.uint32(1)) | (codes >> np.uint32(31))
        rows = words.view(np.uint8).reshape(layout.num_codes, -1)
        plane = Layout(8, layout.parts)
        streams = [
            coder.encode(row, layout=plane)
            for row in np.ascontiguousarray(rows.T)
        ]
        return join_streams(streams)

    def decode(self, data: bytes, *, layout: Layout, coder: Coder) -> Codes:
        """Decode and join the planes."""
        if layout.bits <= 8:
            raise CodecError('splits codes of a single byte')
        dtype = code_dtype(layout.bits)
        rows = np.empty((layout.num_codes, dtype.itemsize), dtype=np.uint8)
        plane = Layout(8, layout.parts)
        streams = split_streams(data, count=dtype.itemsize)
        for column, stream in enumerate(streams):
            rows[:, column] = coder.decode(stream, layout=plane)
        words = rows.reshape(-1).view(dtype)
        if layout.bits == _FLOAT_BITS:
            words = (words >> np.uint32(1)) | (words << np.uint32(31))
        return words
