"""The index of a quantized file, checked before a section is decoded."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from taskptq.export.codecs import CodecError, Coder, Layout
from taskptq.export.errors import shown
from taskptq.export.packing import MAX_CODE_BITS, packed_length
from taskptq.export.schema import (
    PLAIN_SECTIONS,
    SCHEMA,
    TENSOR_SECTIONS,
    QuantizedCheckpointError,
)
from taskptq.export.validate import DTYPES, MAX_DIMS

__all__ = [
    'Index',
    'Item',
    'Section',
    'columns_of',
    'compress_index',
    'damaged',
    'merged_parts',
    'num_codes',
    'open_index',
    'word_bits',
]

FIELDS = ('taskptq', 'state_dict', 'codecs', 'index', 'data', 'digest')
MAX_SECTIONS = 10_000
# JSON of plain parts shrinks to a tenth; each value takes up to 100 bytes.
MAX_INDEX_BYTES, MAX_INDEX_RATIO = 32 << 20, 200
MAX_INDEX_VALUES = 4_000_000
# Tensors below this share the statistics of their neighbours.
SMALL_PART = 256
DTYPE_NAMES = {str(dtype).partition('.')[2]: dtype for dtype in DTYPES}


class Item(NamedTuple):
    """A tensor of the index.

    Attributes:
        name: Its key in the payload.
        kind: ``weights``, ``quantizers`` or ``float``.
        dtype: Of the tensor; uint8 for weights.
        shape: Of the tensor; of the codes for weights.
        section: Number of its section.
        num_bits: Bits of a weight's codes, else 0.
        quant_min: Lowest code of a weight, else 0.
    """

    name: str
    kind: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    section: int
    num_bits: int = 0
    quant_min: int = 0

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


class Section(NamedTuple):
    """A coded section of a file.

    Attributes:
        kind: ``weights``, ``quantizers`` or ``float``.
        layout: Width and parts of its codes.
        data: Its bytes, beginning with the codec's number.
    """

    kind: str
    layout: Layout
    data: bytes


class Index(NamedTuple):
    """What a file declares.

    Attributes:
        plain: Recipe, structure and meta.
        items: All tensors, in the order of the payload.
        sections: Coded sections.
        coder: Reads them.
    """

    plain: dict[str, Any]
    items: list[Item]
    sections: list[Section]
    coder: Coder


def columns_of(items: list[Item]) -> dict[str, Any]:
    """Return the index of all tensors; columns compress better than rows."""
    found: dict[str, Any] = {}
    for kind in ('weights', *TENSOR_SECTIONS):
        rows = [item for item in items if item.kind == kind]
        columns: dict[str, list[Any]] = {
            'name': [item.name for item in rows],
            'shape': [list(item.shape) for item in rows],
            'section': [item.section for item in rows],
        }
        if kind == 'weights':
            columns['num_bits'] = [item.num_bits for item in rows]
            columns['quant_min'] = [item.quant_min for item in rows]
        else:
            names = [str(item.dtype).partition('.')[2] for item in rows]
            columns['dtype'] = names
        found[kind] = columns
    return found


def compress_index(
    payload: Mapping[str, Any],
    *,
    items: list[Item],
    sections: list[Section],
) -> bytes:
    """Return the index of a file, compressed.

    Args:
        payload: Payload of schema 2, checked.
        items: Its tensors, with the numbers of their sections.
        sections: The coded sections.
    """
    index = {
        **{name: payload[name] for name in PLAIN_SECTIONS[SCHEMA]},
        **columns_of(items),
        'sections': [
            [section.layout.bits, len(section.data)] for section in sections
        ],
    }
    text = json.dumps(index, separators=(',', ':')).encode()
    packed = zlib.compress(text, 9)
    # What shrinks more than a reader believes is stored as it is.
    believed = len(text) <= MAX_INDEX_RATIO * len(packed)
    return packed if believed else zlib.compress(text, 0)


def open_index(content: Mapping[str, Any]) -> Index:
    """Check everything that a file declares, without decoding a section.

    Raises:
        QuantizedCheckpointError: If it is damaged, or a codec is missing.
    """
    _check_fields(content)
    index = _read_index(content['index'])
    try:
        coder = Coder(content['codecs'])
    except CodecError as error:
        raise QuantizedCheckpointError(
            f'the quantized checkpoint {error}'
        ) from error
    items = [
        item
        for kind in ('weights', *TENSOR_SECTIONS)
        for item in _read_columns(index[kind], kind)
    ]
    sections = _read_sections(index['sections'], items, content['data'])
    plain = {name: index[name] for name in PLAIN_SECTIONS[SCHEMA]}
    return Index(plain, items, sections, coder)


def _read_sections(
    rows: Any, items: list[Item], data: Tensor
) -> list[Section]:
    if type(rows) is not list or len(rows) > MAX_SECTIONS:
        raise damaged('has no list of sections')
    members: list[list[Item]] = [[] for _ in rows]
    for item in items:
        if not 0 <= item.section < len(rows):
            raise damaged(f'has {shown(item.name)} in no section')
        members[item.section].append(item)
    whole, sections, at = data.cpu().numpy(), [], 0
    for row, group in zip(rows, members, strict=True):
        fine = type(row) is list and len(row) == 2 and bool(group)
        if not fine or not all(type(value) is int for value in row):
            raise damaged(f'has the section {shown(row)}')
        bits, length = row
        if not 0 < length <= len(whole) - at:
            raise damaged(f'has a section of {length:,} bytes')
        layout = _layout(group, bits=bits)
        part = whole[at : at + length].tobytes()
        sections.append(Section(group[0].kind, layout, part))
        at += length
    if at != len(whole):
        raise damaged(f'has {len(whole) - at:,} bytes in no section')
    return sections


def _layout(members: list[Item], *, bits: int) -> Layout:
    for item in members:
        allowed = {word_bits(item.dtype)}
        if item.kind == 'weights':
            allowed.add(item.num_bits)
        if bits not in allowed or item.kind != members[0].kind:
            raise damaged(f'has {shown(item.name)} in a section of others')
    sizes = [num_codes(item, bits=bits) for item in members]
    return Layout(bits, merged_parts(sizes))


def num_codes(item: Item, *, bits: int) -> int:
    """Return how many codes of a section of this width a tensor has."""
    if item.kind != 'weights':
        return item.numel * (8 * item.dtype.itemsize // bits)
    if bits == item.num_bits:
        return item.numel
    return packed_length(item.numel, num_bits=item.num_bits)


def word_bits(dtype: torch.dtype) -> int:
    """Return the width of a section of tensors that aren't weights."""
    return min(8 * dtype.itemsize, 64)


def merged_parts(sizes: list[int]) -> tuple[int, ...]:
    """Join small neighbours: a few numbers have no statistics."""
    parts: list[int] = []
    for size in sizes:
        if parts and (size < SMALL_PART or parts[-1] < SMALL_PART):
            parts[-1] += size
        else:
            parts.append(size)
    return tuple(parts)


def _check_fields(content: Mapping[str, Any]) -> None:
    header, codecs = content['taskptq'], content.get('codecs')
    if content.keys() != set(FIELDS) or (
        header.keys() != {'schema', 'version'}
        or type(header['version']) is not str
    ):
        raise damaged(f'has other parts than {", ".join(FIELDS)}')
    if type(codecs) is not list or not all(
        type(name) is str for name in codecs
    ):
        raise damaged('has no list of codecs')
    for name in ('index', 'data'):
        tensor = content[name]
        if (
            type(tensor) is not Tensor
            or tensor.layout != torch.strided
            or tensor.is_meta
            or tensor.dtype != torch.uint8
            or tensor.dim() != 1
            or not tensor.is_contiguous()
        ):
            raise damaged(f'has a part {name!r} that is not bytes')


def _read_index(tensor: Tensor) -> dict[str, Any]:
    """Decompress and parse the index, which is bounded."""
    data = tensor.cpu().numpy().tobytes()
    limit = min(MAX_INDEX_BYTES, MAX_INDEX_RATIO * len(data))
    stream = zlib.decompressobj()
    try:
        text = stream.decompress(data, limit)
    except zlib.error as error:
        raise damaged('has an unreadable index') from error
    if not stream.eof or stream.unused_data:
        raise damaged('has an index that is cut or too large')
    if sum(map(text.count, b',[{')) > MAX_INDEX_VALUES:
        raise damaged(f'has an index of over {MAX_INDEX_VALUES:,} values')
    try:
        index = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged('has an unreadable index') from error
    expected = {*PLAIN_SECTIONS[SCHEMA], 'weights', *TENSOR_SECTIONS}
    if type(index) is not dict or index.keys() != {*expected, 'sections'}:
        raise damaged('has an index with other parts')
    return index


def _read_columns(columns: Any, kind: str) -> Iterator[Item]:
    extra = ('num_bits', 'quant_min') if kind == 'weights' else ('dtype',)
    names = ('name', 'shape', 'section', *extra)
    if type(columns) is not dict or columns.keys() != set(names):
        raise damaged(f'has an index of {kind} with other columns')
    lists = [columns[name] for name in names]
    if not all(type(values) is list for values in lists) or (
        len({len(values) for values in lists}) > 1
        or not all(type(name) is str for name in columns['name'])
        or len(set(columns['name'])) < len(columns['name'])
    ):
        raise damaged(f'has an index of {kind} with unequal columns')
    for name, shape, section, *rest in zip(*lists, strict=True):
        if kind == 'weights':
            fine = all(type(value) is int for value in rest)
            fine = fine and 1 <= rest[0] <= MAX_CODE_BITS
            dtype, numbers = torch.uint8, rest
        else:
            fine = type(rest[0]) is str and rest[0] in DTYPE_NAMES
            dtype = DTYPE_NAMES[rest[0]] if fine else torch.uint8
            numbers = []
        if not (fine and type(section) is int and _is_shape(shape)):
            raise damaged(f'has an index with the entry {shown(name)}')
        yield Item(name, kind, dtype, tuple(shape), section, *numbers)


def _is_shape(shape: Any) -> bool:
    return (
        type(shape) is list
        and len(shape) <= MAX_DIMS
        and all(type(n) is int and 0 <= n < 1 << 40 for n in shape)
    )


def damaged(problem: str) -> QuantizedCheckpointError:
    """Return the error for a file with a problem."""
    return QuantizedCheckpointError(
        f'the quantized checkpoint {problem}: it is damaged, fetch or write '
        'it again'
    )
