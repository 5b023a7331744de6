"""Codes of which one is most common, as in sparse weights: where and what.

Where the other codes lie is a bitmap or a list of run lengths, whichever is
smaller; what they are is a nested stream.
"""

from __future__ import annotations

import struct
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from taskptq.export.codecs.planes import join_streams, split_streams
from taskptq.export.codecs.registry import (
    Codec,
    CodecError,
    Coder,
    Codes,
    Layout,
    register_codec,
)

__all__ = ['Zeros']

Mask = npt.NDArray[np.bool_]
# With fewer of the common code, places cost more than they spare.
LEAST_SHARE = 0.2
# Most common code, number of others, bytes of the run lengths (0: a bitmap).
HEADER = struct.Struct('<QQQ')
# A run byte of this value goes on in the next.
LONG = 255


def run_bytes(mask: Mask) -> npt.NDArray[np.uint8]:
    """Return the gap before each True, in bytes; 255 goes on in the next.

    >>> run_bytes(np.array([False, True, True, False, False, True])).tolist()
    [1, 0, 2]
    """
    places = np.flatnonzero(mask)
    gaps = np.diff(places, prepend=-1) - 1
    longs = gaps // LONG
    ends = np.cumsum(longs + 1) - 1
    found = np.full(int(ends[-1]) + 1 if len(ends) else 0, LONG, np.uint8)
    found[ends] = gaps % LONG
    return found


def run_mask(runs: npt.NDArray[np.uint8], *, length: int) -> Mask:
    """Undo :func:`run_bytes`.

    Args:
        runs: Gaps, uint8.
        length: Elements of the mask.

    Raises:
        CodecError: If the runs end within a gap or beyond the mask.
    """
    mask = np.zeros(length, dtype=np.bool_)
    if not len(runs):
        return mask
    last = runs != LONG
    if not last[-1]:
        raise CodecError('ends within a run')
    # A gap's bytes add up to it; each True takes one place more.
    places = np.cumsum(runs.astype(np.int64) + last)[last] - 1
    if places[-1] >= length:
        raise CodecError('has runs beyond its end')
    mask[places] = True
    return mask


@register_codec
class Zeros(Codec):
    """A mask of the most common code, and the others."""

    name = 'zeros'
    nests = True

    def __init__(self) -> None:
        self._inside = False

    def encode(
        self, codes: Codes, *, layout: Layout, coder: Coder
    ) -> bytes | None:
        """Encode; None where no code is common, or within itself."""
        if self._inside or not layout.num_codes:
            return None
        common = _most_common(codes)
        mask = codes != common
        kept = int(mask.sum())
        if kept > (1 - LEAST_SHARE) * layout.num_codes:
            return None
        self._inside = True
        try:
            places, runs = _places(mask, coder)
            values = coder.encode(
                codes[mask], layout=Layout(layout.bits, _parts(mask, layout))
            )
        finally:
            self._inside = False
        header = HEADER.pack(common, kept, runs)
        return header + join_streams([places, values])

    def decode(self, data: bytes, *, layout: Layout, coder: Coder) -> Codes:
        """Decode the mask, then the other codes.

        Raises:
            CodecError: If counts do not fit together.
        """
        common, kept, runs = HEADER.unpack_from(data)
        total = layout.num_codes
        if common >> layout.bits or kept > total or runs > 2 * total + 1:
            raise CodecError('has a mask that does not fit its codes')
        places, values = split_streams(data[HEADER.size :], count=2)
        if runs:
            stream = coder.decode(places, layout=Layout(8, (runs,)))
            mask = run_mask(stream, length=total)
        else:
            packed = Layout(8, ((total + 7) // 8,))
            bits = np.unpackbits(coder.decode(places, layout=packed))
            mask = bits[:total].astype(np.bool_)
        if int(mask.sum()) != kept:
            raise CodecError('has another number of codes than its mask')
        inner = Layout(layout.bits, _parts(mask, layout))
        others = coder.decode(values, layout=inner)
        codes = np.full(total, common, dtype=others.dtype)
        codes[mask] = others
        return codes


def _most_common(codes: Codes) -> int:
    if codes.dtype.itemsize == 1:
        return int(np.bincount(codes).argmax())
    if int((codes == 0).sum()) * 2 > len(codes):
        return 0  # without sorting
    values, counts = np.unique(codes, return_counts=True)
    return int(values[counts.argmax()])


def _places(mask: Mask, coder: Coder) -> tuple[bytes, int]:
    """Return the shorter form of a mask, and its bytes of runs (0: none)."""
    bitmap = np.packbits(mask)
    as_map = coder.encode(bitmap, layout=Layout(8, (len(bitmap),)))
    runs = run_bytes(mask)
    if not len(runs):
        return as_map, 0
    as_runs = coder.encode(runs, layout=Layout(8, (len(runs),)))
    if len(as_runs) < len(as_map):
        return as_runs, len(runs)
    return as_map, 0


def _parts(mask: Mask, layout: Layout) -> tuple[int, ...]:
    """Return how many codes of each part remain, without empty parts."""
    ends = list(accumulate(layout.parts))
    starts = [0, *ends[:-1]]
    counts = [
        int(np.count_nonzero(mask[start:end]))
        for start, end in zip(starts, ends, strict=True)
    ]
    return tuple(count for count in counts if count)
