"""Zstandard over the packed codes; needs the package ``zstandard``."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from taskptq.export.codecs.dense import (
    dense_bytes,
    dense_codes,
    dense_size,
)
from taskptq.export.codecs.registry import (
    Codec,
    CodecError,
    Coder,
    Codes,
    Layout,
    code_dtype,
    register_codec,
)

__all__ = ['Zstd']

LEVEL = 19
PACKED, WHOLE = b'\0', b'\1'


@register_codec
class Zstd(Codec):
    """The shorter of two: packed codes, or one code in each byte."""

    name = 'zstd'
    automatic = False
    package = 'zstandard'

    def encode(self, codes: Codes, *, layout: Layout, coder: Coder) -> bytes:
        """Compress the codes in both forms."""
        compressor = _zstandard().ZstdCompressor(level=LEVEL)
        forms = {
            PACKED: dense_bytes(codes, bits=layout.bits),
            WHOLE: codes.tobytes(),
        }
        found: list[bytes] = [
            kind + compressor.compress(form) for kind, form in forms.items()
        ]
        return min(found, key=len)

    def decode(self, data: bytes, *, layout: Layout, coder: Coder) -> Codes:
        """Decompress, once the frame declares the expected size."""
        zstandard = _zstandard()
        kind, frame = data[:1], data[1:]
        if kind not in (PACKED, WHOLE):
            raise CodecError('is not a section of zstd')
        width = layout.bits
        if kind == WHOLE:
            width = 8 * code_dtype(layout.bits).itemsize
        size = dense_size(layout.num_codes, bits=width)
        try:
            if zstandard.get_frame_parameters(frame).content_size != size:
                raise CodecError(f'does not hold {size:,} bytes')
            whole = zstandard.ZstdDecompressor().decompress(
                frame, max_output_size=size, allow_extra_data=False
            )
        except zstandard.ZstdError as error:
            raise CodecError('is not a frame of zstd') from error
        return dense_codes(whole, bits=width, count=layout.num_codes)

    def available(self) -> bool:
        """Whether zstandard is installed."""
        return importlib.util.find_spec(self.package) is not None


def _zstandard() -> Any:
    return importlib.import_module('zstandard')
