"""The file form of a payload: an index and coded sections in two tensors.

torch.save writes an entry and some 150 bytes of pickle for each tensor; a
quantized model has about ten small ones per layer. Here the tensors of one
kind follow each other in a section, and the plain parts are compressed JSON.
The payload that a reader gets is the one that was written, bit by bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from taskptq.export.codecs import CodecError, Coder, Layout, chosen_codecs
from taskptq.export.container_index import (
    Item,
    Section,
    compress_index,
    damaged,
    merged_parts,
    num_codes,
    open_index,
    word_bits,
)
from taskptq.export.errors import shown
from taskptq.export.packing import pack_codes, unpack_codes
from taskptq.export.schema import (
    CONTAINER_SCHEMA,
    SCHEMA,
    STATE_DICT_NOTE,
    TENSOR_SECTIONS,
    QuantizedCheckpointError,
)
from taskptq.export.validate import check_structure

__all__ = ['expanded', 'is_container', 'to_file', 'to_payload']

Codes = npt.NDArray[Any]


def is_container(payload: object) -> bool:
    """Return whether a payload is in the form that files have."""
    if not isinstance(payload, Mapping):
        return False
    header = payload.get('taskptq')
    schema = header.get('schema') if isinstance(header, Mapping) else None
    return type(schema) is int and schema == CONTAINER_SCHEMA


def to_file(
    payload: Mapping[str, Any], *, codec: str = 'dense'
) -> dict[str, Any]:
    """Return the file form of a payload of schema 2.

    Args:
        payload: From :func:`taskptq.export.pack_model` or ``load``.
        codec: One of ``codecs.CHOICES``; each section takes the shortest of
            this and ``dense``.

    Raises:
        QuantizedCheckpointError: If it is not a payload of schema 2.
        ValueError: If there is no such codec, or its package is missing.
    """
    coder = chosen_codecs(codec)
    check_structure(payload)
    if payload['taskptq']['schema'] != SCHEMA:
        raise QuantizedCheckpointError(
            f'a payload of schema {payload["taskptq"]["schema"]} has no file '
            'form of its own: write it with torch.save'
        )
    items = _number_sections(_items(payload))
    sections = _encode(items, payload, coder=coder, packed=codec == 'dense')
    index = compress_index(payload, items=items, sections=sections)
    return {
        'taskptq': {**payload['taskptq'], 'schema': CONTAINER_SCHEMA},
        'state_dict': STATE_DICT_NOTE,
        'codecs': coder.names,
        'index': _bytes_tensor(index),
        'data': _bytes_tensor(b''.join(s.data for s in sections)),
        'digest': payload['digest'],
    }


def to_payload(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the payload of a file; the file is not trusted.

    Args:
        content: In the form of :func:`to_file`.

    Raises:
        QuantizedCheckpointError: If it is damaged, declares more than it can
            hold, or needs a codec that is not installed.
    """
    index = open_index(content)
    tensors: dict[str, dict[str, Any]] = {
        kind: {} for kind in ('weights', *TENSOR_SECTIONS)
    }
    members: list[list[Item]] = [[] for _ in index.sections]
    for item in index.items:
        # Keeps the order of the file, whatever the sections' order is.
        tensors[item.kind][item.name] = None
        members[item.section].append(item)
    for number, section in enumerate(index.sections):
        codes = _decode(section, coder=index.coder, number=number)
        bits, start = section.layout.bits, 0
        for item in members[number]:
            size = num_codes(item, bits=bits)
            part = codes[start : start + size]
            start += size
            tensors[item.kind][item.name] = _restored(item, part, bits=bits)
    return {
        'taskptq': {**content['taskptq'], 'schema': SCHEMA},
        'state_dict': content['state_dict'],
        **index.plain,
        **tensors,
        'digest': content['digest'],
    }


def expanded(payload: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a payload as it is, or that of a file's form.

    Raises:
        QuantizedCheckpointError: See :func:`to_payload`.
    """
    return to_payload(payload) if is_container(payload) else payload


def _items(payload: Mapping[str, Any]) -> Iterator[tuple[Any, Item]]:
    """Yield (key of the group, tensor's description) of all tensors."""
    for name, entry in payload['weights'].items():
        bits, shape = entry['num_bits'], tuple(entry['shape'])
        item = Item(
            name, 'weights', torch.uint8, shape, 0, bits, entry['quant_min']
        )
        yield ('weights', bits), item
    for kind in TENSOR_SECTIONS:
        for name, tensor in payload[kind].items():
            field = name.rpartition('.')[2]
            shape = tuple(tensor.shape)
            item = Item(name, kind, tensor.dtype, shape, 0)
            yield (kind, field, str(tensor.dtype)), item


def _number_sections(items: Iterator[tuple[Any, Item]]) -> list[Item]:
    numbers: dict[Any, int] = {}
    return [
        item._replace(section=numbers.setdefault(key, len(numbers)))
        for key, item in items
    ]


def _encode(
    items: list[Item],
    payload: Mapping[str, Any],
    *,
    coder: Coder,
    packed: bool,
) -> list[Section]:
    """Encode all sections; ``packed`` leaves weights as they lie in memory."""
    found: list[Section] = []
    for number in range(1 + max((i.section for i in items), default=-1)):
        members = [item for item in items if item.section == number]
        first = members[0]
        bits = word_bits(first.dtype)
        if first.kind == 'weights' and not packed:
            bits = first.num_bits
        parts = [_codes(item, payload, bits=bits) for item in members]
        layout = Layout(bits, merged_parts([len(part) for part in parts]))
        data = coder.encode(np.concatenate(parts), layout=layout)
        found.append(Section(first.kind, layout, data))
    return found


def _codes(item: Item, payload: Mapping[str, Any], *, bits: int) -> Codes:
    """Return a tensor as unsigned words, or a weight's codes."""
    if item.kind != 'weights':
        tensor: Tensor = payload[item.kind][item.name]
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        raw = flat.view(torch.uint8).numpy()
        return raw.view(f'<u{bits // 8}')
    packed: Tensor = payload['weights'][item.name]['packed']
    if bits != item.num_bits:
        return np.asarray(packed.numpy())
    codes = unpack_codes(
        packed, num_bits=bits, quant_min=0, shape=[item.numel]
    )
    return codes.numpy().astype(np.uint8 if bits <= 8 else '<u2')


def _restored(item: Item, codes: Codes, *, bits: int) -> Any:
    """Undo :func:`_codes`: a tensor, or a weight's entry."""
    if item.kind != 'weights':
        if item.dtype == torch.bool and bool((codes > 1).any()):
            raise damaged(f'{shown(item.name)} is no bool')
        # A copy, since the decoded section would stay in memory as a whole.
        raw = torch.empty(codes.nbytes, dtype=torch.uint8)
        raw.numpy()[:] = codes.view(np.uint8)
        return raw.view(item.dtype).reshape(item.shape)
    if bits == item.num_bits:
        wide = torch.from_numpy(codes.astype(np.int32))
        packed = pack_codes(wide, num_bits=bits, quant_min=0)
    else:
        packed = torch.from_numpy(codes.copy())
    return {
        'packed': packed,
        'shape': list(item.shape),
        'num_bits': item.num_bits,
        'quant_min': item.quant_min,
    }


def _decode(section: Section, *, coder: Coder, number: int) -> Codes:
    try:
        return coder.decode(section.data, layout=section.layout)
    except CodecError as error:
        raise damaged(
            f'has a section {number} ({section.kind}) that {error}'
        ) from error


def _bytes_tensor(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy())
