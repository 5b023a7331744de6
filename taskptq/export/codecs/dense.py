"""Codes in their own width, packed without gaps."""

from __future__ import annotations

import numpy as np
import torch

from taskptq.export.codecs.registry import (
    Codec,
    CodecError,
    Coder,
    Codes,
    Layout,
    code_dtype,
    register_codec,
)
from taskptq.export.packing import (
    MAX_CODE_BITS,
    pack_codes,
    packed_length,
    unpack_codes,
)

__all__ = ['Dense', 'dense_bytes', 'dense_codes', 'dense_size']

# Already packed as they lie in memory.
WHOLE_WORDS = (8, 16)


def dense_size(count: int, *, bits: int) -> int:
    """Return the bytes that codes take; beyond 16 bits they are words."""
    if bits > MAX_CODE_BITS:
        return count * code_dtype(bits).itemsize
    return packed_length(count, num_bits=bits)


def dense_bytes(codes: Codes, *, bits: int) -> bytes:
    """Pack codes of up to 16 bits; write wider ones as whole words.

    Args:
        codes: (N,), unsigned.
        bits: Width, 1 to 64.
    """
    if bits in WHOLE_WORDS or bits > MAX_CODE_BITS:
        return codes.tobytes()
    wide = torch.from_numpy(codes.astype(np.int32))
    return pack_codes(wide, num_bits=bits, quant_min=0).numpy().tobytes()


def dense_codes(data: bytes, *, bits: int, count: int) -> Codes:
    """Undo :func:`dense_bytes`.

    Raises:
        CodecError: If the number of bytes is not that of ``count`` codes.
    """
    size = dense_size(count, bits=bits)
    if len(data) != size:
        raise CodecError(f'has {len(data):,} bytes instead of {size:,}')
    dtype = code_dtype(bits)
    if bits in WHOLE_WORDS or bits > MAX_CODE_BITS:
        return np.frombuffer(data, dtype=dtype)
    packed = torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy())
    codes = unpack_codes(packed, num_bits=bits, quant_min=0, shape=[count])
    return codes.numpy().astype(dtype)


@register_codec
class Dense(Codec):
    """No compression; decoded at the speed of the disk."""

    name = 'dense'

    def encode(self, codes: Codes, *, layout: Layout, coder: Coder) -> bytes:
        """Pack the codes."""
        return dense_bytes(codes, bits=layout.bits)

    def decode(self, data: bytes, *, layout: Layout, coder: Coder) -> Codes:
        """Unpack the codes."""
        return dense_codes(data, bits=layout.bits, count=layout.num_codes)
