"""Interleaved range coding by asymmetric numeral systems (rANS), in numpy.

J. Duda, arXiv 1311.2540 (2013); interleaving after F. Giesen, arXiv
1402.3392 (2014). Many coders ("lanes") take turns: code i belongs to lane
i mod K, so that one step handles a row of K codes.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from taskptq.export.codecs.histograms import (
    Counts,
    frequencies,
    group_parts,
    histograms,
    read_table,
    write_table,
)
from taskptq.export.codecs.registry import (
    Codec,
    CodecError,
    Coder,
    Codes,
    Layout,
    register_codec,
)

__all__ = ['Model', 'Rans', 'decode_stream', 'encode_stream', 'fit_model']

Array = npt.NDArray[Any]

# States lie in [LOW, 2^32) and move 16 bits at a time.
LOW_BITS, WORD_BITS = 16, 16
LOW = 1 << LOW_BITS
# A lane costs about ten bits, a row of lanes some 30 us.
CODES_OF_LANE, MAX_LANES = 2048, 1 << 14
CODES_OF_SHORT_LANE, SHORT_LANES = 256, 64
FEW_SYMBOLS_BITS = 4
PRECISION_FEW, PRECISION_MANY = 12, 14
HEADER = struct.Struct('<HB')


class Model(NamedTuple):
    """Static statistics of a section.

    Attributes:
        tables: (tables, symbols), each row of the sum ``2 ** precision``.
        of_part: Table of each part.
        precision: Bits of a frequency.
    """

    tables: Counts
    of_part: list[int]
    precision: int

    def table_of_codes(self, layout: Layout) -> Array:
        """Return the number of the table of each code: uint8, (count,)."""
        of_part = np.array(self.of_part, dtype=np.uint8)
        return np.repeat(of_part, np.array(layout.parts, dtype=np.int64))


def fit_model(codes: Codes, *, layout: Layout) -> Model:
    """Count the symbols of all parts and choose their tables.

    Args:
        codes: (layout.num_codes,), not empty, at most 8 bits.
        layout: Width and parts.
    """
    counts = histograms(
        codes, parts=layout.parts, num_symbols=1 << layout.bits
    )
    chosen = group_parts(counts)
    precision = precision_of(layout.bits)
    sums = np.zeros((max(chosen) + 1, counts.shape[1]), dtype=np.int64)
    np.add.at(sums, chosen, counts)
    return Model(
        np.stack([frequencies(row, precision=precision) for row in sums]),
        chosen,
        precision,
    )


def precision_of(bits: int) -> int:
    """Return the bits of a frequency for codes of a width."""
    return PRECISION_FEW if bits <= FEW_SYMBOLS_BITS else PRECISION_MANY


def write_model(model: Model) -> bytes:
    """Write the tables and, if there are several, the table of each part."""
    of_part = model.of_part if len(model.tables) > 1 else []
    tables = b''.join(write_table(table) for table in model.tables)
    return bytes([len(model.tables) - 1, *of_part]) + tables


def read_model(data: bytes, *, layout: Layout) -> tuple[Model, bytes]:
    """Undo :func:`write_model`; also return the bytes behind it.

    Raises:
        CodecError: If a table is damaged.
    """
    number, at = data[0] + 1, 1
    of_part = [0] * len(layout.parts)
    if number > 1:
        of_part = list(data[at : at + len(of_part)])
        at += len(of_part)
    if len(of_part) != len(layout.parts) or max(of_part) >= number:
        raise CodecError('names a table of frequencies that it lacks')
    precision = precision_of(layout.bits)
    tables = []
    for _ in range(number):
        table, at = read_table(
            data, at, num_symbols=1 << layout.bits, precision=precision
        )
        tables.append(table)
    return Model(np.stack(tables), of_part, precision), data[at:]


def num_lanes(count: int) -> int:
    """Return how many lanes share a number of codes.

    Short sections have more for their size, since few lanes are slow.
    """
    few = min(count // CODES_OF_SHORT_LANE, SHORT_LANES)
    return min(max(count // CODES_OF_LANE, few, 1), MAX_LANES)


def encode_stream(codes: Codes, *, layout: Layout, model: Model) -> bytes:
    """Encode codes: lanes, their final states, then words of 16 bits.

    The last codes start the lanes: 16 bits of a new state are free.

    Args:
        codes: (layout.num_codes,).
        layout: Width and parts.
        model: Tables in which every code has a frequency.
    """
    lanes = num_lanes(layout.num_codes)
    seeds = _seeds(layout, lanes=lanes)
    rest = layout.num_codes - lanes * seeds
    state = np.full(lanes, LOW, dtype=np.uint64)
    tail = codes[rest:].reshape(seeds, lanes).astype(np.uint64)
    for i in range(seeds):
        state |= tail[i] << np.uint64(i * layout.bits)
    table = model.table_of_codes(layout)
    freq = model.tables.astype(np.uint64)
    start = (np.cumsum(freq, axis=1) - freq).astype(np.uint64)
    shift = np.uint64(model.precision)
    full = np.uint64(2 * WORD_BITS - model.precision)
    words: list[Array] = []
    for first in reversed(range(0, rest, lanes)):
        row = slice(first, min(first + lanes, rest))
        f = freq[table[row], codes[row]]
        x = state[: len(f)]
        large = x >= f << full
        words.append(x[large].astype('<u2'))
        x[large] >>= np.uint64(WORD_BITS)
        high, low = np.divmod(x, f)
        x[:] = (high << shift) + low + start[table[row], codes[row]]
    body = b''.join(part.tobytes() for part in reversed(words))
    header = HEADER.pack(lanes, seeds)
    return header + state.astype('<u4').tobytes() + body


def decode_stream(data: bytes, *, layout: Layout, model: Model) -> Codes:
    """Undo :func:`encode_stream`.

    Raises:
        CodecError: If the words do not last, or are left over.
    """
    lanes, seeds = HEADER.unpack_from(data)
    if not 1 <= lanes <= MAX_LANES or seeds not in (
        0,
        _seeds(layout, lanes=lanes),
    ):
        raise CodecError(f'has {lanes} lanes for {layout.num_codes:,} codes')
    body = HEADER.size + 4 * lanes
    rest = layout.num_codes - lanes * seeds
    found = np.empty(layout.num_codes, dtype=np.uint8)
    entries = _lookup(model)
    state = np.frombuffer(data, '<u4', count=lanes, offset=HEADER.size)
    state = state.astype(entries.dtype)
    words = np.frombuffer(data, '<u2', offset=body).astype(entries.dtype)
    offset = model.table_of_codes(layout)
    at = _walk(
        found[:rest],
        table=offset,
        state=state,
        words=words,
        entries=entries,
        precision=model.precision,
    )
    if at != len(words) or bool((state >> LOW_BITS != 1).any()):
        raise CodecError('does not end where its codes do')
    mask = (1 << layout.bits) - 1
    for i in range(seeds):
        row = found[rest + i * lanes : rest + (i + 1) * lanes]
        row[:] = (state >> (i * layout.bits)) & mask
    return found


def _walk(
    found: Codes,
    *,
    table: Array,
    state: Array,
    words: Array,
    entries: Array,
    precision: int,
) -> int:
    """Decode row after row in place; return the number of words read."""
    kind = entries.dtype.type
    mask, shift = kind((1 << precision) - 1), kind(precision)
    low, word_bits, eight = kind(LOW), kind(WORD_BITS), kind(8)
    above = kind(8 + precision)
    lanes, at = len(state), 0
    size = 1 << precision
    for first in range(0, len(found), lanes):
        row = slice(first, min(first + lanes, len(found)))
        x = state[: row.stop - first]
        slot = x & mask
        one, last = int(table[first]), int(table[row.stop - 1])
        if one == last:
            entry = entries[one * size : (one + 1) * size].take(slot)
        else:
            entry = entries.take(slot + table[row] * kind(size))
        found[row] = entry
        x >>= shift
        x *= ((entry >> eight) & mask) + kind(1)
        x += entry >> above
        need = np.flatnonzero(x < low)
        new = words[at : at + len(need)]
        x[need] = (x[need] << word_bits) | new
        at += len(need)
    return at


def _lookup(model: Model) -> Array:
    """Return slot -> symbol, frequency - 1, slot - start, in one integer."""
    precision = model.precision
    wide = 8 + 2 * precision > 32
    size = 1 << precision
    entries = np.empty((len(model.tables), size), dtype=np.uint64)
    slots = np.arange(size, dtype=np.uint64)
    for row, table in zip(entries, model.tables, strict=True):
        symbol = np.repeat(np.arange(len(table)), table)
        start = (np.cumsum(table) - table)[symbol].astype(np.uint64)
        row[:] = symbol
        row |= (table[symbol] - 1).astype(np.uint64) << np.uint64(8)
        row |= (slots - start) << np.uint64(8 + precision)
    return entries.reshape(-1).astype(np.int64 if wide else np.uint32)


def _seeds(layout: Layout, *, lanes: int) -> int:
    """Return how many codes each new state can hold."""
    seeds = WORD_BITS // layout.bits
    return seeds if layout.num_codes >= lanes * seeds else 0


@register_codec
class Rans(Codec):
    """Entropy coding with static tables; each tensor has one or shares it."""

    name = 'rans'

    def encode(
        self, codes: Codes, *, layout: Layout, coder: Coder
    ) -> bytes | None:
        """Fit tables and encode; None for more than 8 bits or nothing."""
        if layout.bits > 8 or not layout.num_codes:
            return None
        model = fit_model(codes, layout=layout)
        body = encode_stream(codes, layout=layout, model=model)
        return write_model(model) + body

    def decode(self, data: bytes, *, layout: Layout, coder: Coder) -> Codes:
        """Read the tables and decode."""
        if layout.bits > 8 or not layout.num_codes:
            raise CodecError('holds codes that are too wide, or none')
        model, body = read_model(data, layout=layout)
        return decode_stream(body, layout=layout, model=model)
