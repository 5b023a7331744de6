"""Dense bit packing of integer codes of 1 to 16 bits, without padding.

Code i starts at bit ``i * num_bits`` of the stream, whose first bit is the
lowest bit of the first byte.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# Limit of the file format; quantizers use fewer bits (core.spec).
MAX_CODE_BITS = 16
# Eight codes of b bits fill exactly b bytes, so all work is done in eights.
GROUP = 8
# Up to this width, eight codes fit into one int64.
WORD_CODE_BITS = 8
# Codes of these widths never cross a byte, so no words are needed.
WHOLE_IN_BYTE = (1, 2, 4, 8)


def packed_length(count: int, *, num_bits: int) -> int:
    """Return the number of bytes that ``count`` codes take."""
    return (count * num_bits + 7) // 8


def pack_codes(codes: Tensor, *, num_bits: int, quant_min: int) -> Tensor:
    """Pack codes densely.

    Args:
        codes: Any shape, integers in [quant_min, quant_min + 2^num_bits - 1].
        num_bits: Bits of one code, 1 to 16.
        quant_min: Lowest code; stored as 0.

    Returns:
        uint8, (ceil(codes.numel() * num_bits / 8),).

    Raises:
        ValueError: If a code or ``num_bits`` is out of range.
    """
    _check_bits(num_bits)
    flat = codes.reshape(-1) - quant_min
    if flat.numel() and not (flat.min() >= 0 and flat.max() < 2**num_bits):
        raise ValueError(
            f'codes lie in [{int(flat.min()) + quant_min}, '
            f'{int(flat.max()) + quant_min}], outside the {num_bits}-bit grid '
            f'that starts at quant_min={quant_min}'
        )
    dtype = torch.uint8 if num_bits in WHOLE_IN_BYTE else torch.int64
    padded = flat.new_zeros(-(-flat.numel() // GROUP) * GROUP, dtype=dtype)
    padded[: flat.numel()] = flat
    if num_bits in WHOLE_IN_BYTE:
        rows = padded.reshape(-1, 8 // num_bits)
        packed = rows[:, 0].clone()
        for i in range(1, rows.shape[1]):
            packed |= rows[:, i] << (num_bits * i)
    elif num_bits <= WORD_CODE_BITS:
        groups = padded.reshape(-1, GROUP)
        words = torch.zeros_like(groups[:, 0])
        for i in range(GROUP):
            words |= groups[:, i] << (num_bits * i)
        parts = [(words >> (8 * j)) & 0xFF for j in range(num_bits)]
        packed = torch.stack(parts, dim=1).to(torch.uint8).flatten()
    else:
        packed = _from_bits(_to_bits(padded, count=num_bits), count=8)
    return packed[: packed_length(flat.numel(), num_bits=num_bits)].clone()


def unpack_codes(
    packed: Tensor, *, num_bits: int, quant_min: int, shape: Sequence[int]
) -> Tensor:
    """Undo :func:`pack_codes`.

    Args:
        packed: uint8, (N,).
        num_bits: Bits of one code, 1 to 16.
        quant_min: Lowest code.
        shape: Shape of the codes.

    Returns:
        int32 codes of the given shape.

    Raises:
        ValueError: If the number of bytes doesn't fit ``shape``.
    """
    _check_bits(num_bits)
    count = math.prod(shape)
    expected = packed_length(count, num_bits=num_bits)
    if packed.dtype != torch.uint8 or packed.numel() != expected:
        raise ValueError(
            f'packed holds {packed.numel()} elements of {packed.dtype}, but '
            f'{num_bits}-bit codes of shape {list(shape)} take {expected} '
            'bytes'
        )
    if num_bits in WHOLE_IN_BYTE:
        mask = 2**num_bits - 1
        parts = [
            (packed >> (num_bits * i)) & mask for i in range(8 // num_bits)
        ]
        codes = torch.stack(parts, dim=1).flatten()[:count]
        return codes.to(torch.int32).add_(quant_min).reshape(tuple(shape))
    num_groups = -(-count // GROUP)
    padded = packed.new_zeros(num_groups * num_bits)
    padded[:expected] = packed.reshape(-1)
    if num_bits > WORD_CODE_BITS:
        codes = _from_bits(_to_bits(padded, count=8), count=num_bits)
        codes = codes[:count] + quant_min
        return codes.to(torch.int32).reshape(tuple(shape))
    groups = padded.reshape(num_groups, num_bits).to(torch.int64)
    words = torch.zeros(num_groups, dtype=torch.int64, device=packed.device)
    for j in range(num_bits):
        words |= groups[:, j] << (8 * j)
    mask = 2**num_bits - 1
    parts = [(words >> (num_bits * i)) & mask for i in range(GROUP)]
    codes = torch.stack(parts, dim=1).flatten()[:count] + quant_min
    return codes.to(torch.int32).reshape(tuple(shape))


def _to_bits(values: Tensor, *, count: int) -> Tensor:
    """Return the lowest ``count`` bits of (N,) values: uint8, (N * count,)."""
    bits = [((values >> i) & 1).to(torch.uint8) for i in range(count)]
    return torch.stack(bits, dim=1).flatten()


def _from_bits(bits: Tensor, *, count: int) -> Tensor:
    """Undo :func:`_to_bits`: uint8 up to eight bits, int32 above."""
    rows = bits.reshape(-1, count)
    dtype = torch.uint8 if count <= 8 else torch.int32
    values = torch.zeros(len(rows), dtype=dtype, device=bits.device)
    for i in range(count):
        values |= rows[:, i].to(dtype) << i
    return values


def _check_bits(num_bits: int) -> None:
    if not 1 <= num_bits <= MAX_CODE_BITS:
        raise ValueError(
            f'num_bits={num_bits} is not supported: choose 1 to '
            f'{MAX_CODE_BITS} bits'
        )
