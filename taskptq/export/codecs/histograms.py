"""Integer frequency tables, and which tensors share one."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from taskptq.export.codecs.registry import CodecError, Codes

__all__ = [
    'entropy_bits',
    'frequencies',
    'group_parts',
    'histograms',
    'read_table',
    'write_table',
]

Counts = npt.NDArray[np.int64]

MAX_TABLES = 64
# A frequency is written in one or two bytes.
_ENTRY_BITS, _ENDS_BITS = 12, 16


def histograms(
    codes: Codes, *, parts: tuple[int, ...], num_symbols: int
) -> Counts:
    """Count the symbols of each part: (parts, num_symbols)."""
    found = np.zeros((len(parts), num_symbols), dtype=np.int64)
    start = 0
    for row, count in zip(found, parts, strict=True):
        row += np.bincount(codes[start : start + count], minlength=num_symbols)
        start += count
    return found


def entropy_bits(counts: Counts) -> npt.NDArray[Any]:
    """Return n H of each row of counts, in bits (Shannon, 1948)."""
    total = counts.sum(-1)
    logs = np.log2(np.maximum(counts, 1))
    return np.asarray(
        total * np.log2(np.maximum(total, 1)) - (counts * logs).sum(-1)
    )


def group_parts(counts: Counts) -> list[int]:
    """Choose a table for each part so that codes and tables are short.

    Greedy: the largest part first, each joins the table where it adds the
    fewest bits, or opens one if that is shorter.

    Args:
        counts: (parts, num_symbols).

    Returns:
        Number of the table of each part, from 0 without gaps.
    """
    order = np.argsort(-counts.sum(1), kind='stable')
    tables = np.zeros((0, counts.shape[1]), dtype=np.int64)
    cost = np.zeros(0)
    chosen = [0] * len(counts)
    for part in order:
        alone = _cost(counts[part][None])
        joined = _cost(tables + counts[part]) - cost
        best = int(joined.argmin()) if len(tables) else 0
        full = len(tables) >= MAX_TABLES
        if len(tables) and (full or joined[best] <= alone[0]):
            tables[best] += counts[part]
            cost[best] += joined[best]
        else:
            best = len(tables)
            tables = np.concatenate([tables, counts[part][None]])
            cost = np.concatenate([cost, alone])
        chosen[part] = best
    return chosen


def _cost(counts: Counts) -> npt.NDArray[Any]:
    """Return bits of the codes and of the table, for each row."""
    used = counts > 0
    first = used.argmax(1)
    last = counts.shape[1] - 1 - used[:, ::-1].argmax(1)
    table = _ENDS_BITS + _ENTRY_BITS * (last - first + 1)
    return np.asarray(entropy_bits(counts) + table)


def frequencies(counts: Counts, *, precision: int) -> Counts:
    """Scale counts to integers of the sum ``2 ** precision``.

    Symbols that occur keep at least 1. The rest of the rounding goes to the
    symbols whose code lengths it changes least.

    Args:
        counts: (num_symbols,), at least one above 0.
        precision: Bits.
    """
    total = 1 << precision
    exact = counts * (total / counts.sum())
    found = np.where(counts > 0, np.maximum(np.rint(exact), 1), 0)
    found = found.astype(np.int64)
    while (excess := int(found.sum()) - total) != 0:
        step = -1 if excess > 0 else 1
        movable = found > (1 if step < 0 else 0)
        change = counts * np.log2(
            np.maximum(found, 1) / np.maximum(found + step, 1)
        )
        change[~movable] = np.inf
        # Many steps at once only where the alphabet allows it.
        share = np.argsort(change, kind='stable')
        for symbol in share[: min(abs(excess), int(movable.sum()))]:
            found[symbol] += step
    return found


def write_table(table: Counts) -> bytes:
    """Write frequencies: first and last symbol, then one or two bytes each.

    Args:
        table: (up to 256,), below 2^15.
    """
    used = np.flatnonzero(table)
    first, last = int(used[0]), int(used[-1])
    out = bytearray([first, last])
    for value in table[first : last + 1].tolist():
        if value < 128:
            out.append(value)
        else:
            out += bytes([128 | (value >> 8), value & 255])
    return bytes(out)


def read_table(
    data: bytes, at: int, *, num_symbols: int, precision: int
) -> tuple[Counts, int]:
    """Undo :func:`write_table`; also return the position after it.

    Raises:
        CodecError: If the frequencies are not those of a table.
    """
    first, last = data[at], data[at + 1]
    at += 2
    table = np.zeros(num_symbols, dtype=np.int64)
    for symbol in range(first, last + 1):
        value = data[at]
        at += 1
        if value >= 128:
            value = (value & 127) << 8 | data[at]
            at += 1
        table[symbol] = value
    if int(table.sum()) != 1 << precision:
        raise CodecError('has a table of frequencies with a wrong sum')
    return table, at
