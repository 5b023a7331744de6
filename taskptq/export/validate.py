"""Check the structure of a payload before anything is computed from it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from taskptq.export.errors import shown
from taskptq.export.packing import MAX_CODE_BITS, packed_length
from taskptq.export.schema import (
    CONTAINER_SCHEMA,
    PLAIN_SECTIONS,
    READABLE,
    TENSOR_SECTIONS,
    WEIGHT_FIELDS,
    QuantizedCheckpointError,
    is_quantized,
    sections,
    tensors,
)

MAX_TENSORS = 100_000
MAX_NAME = 1000
MAX_DIMS = 16
MAX_DEPTH = 50
MAX_NODES = 500_000
MAX_TEXT = 16 << 20
# Overrides and kept layers; each pattern is tried on every layer of a model.
MAX_PATTERNS = 1000
DIGEST_LENGTH = 64
DTYPES = {
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
    torch.int8,
    torch.uint8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.bool,
}
LEAVES = (str, int, float, bool, type(None))


def check_structure(payload: Mapping[str, Any]) -> None:
    """Check types, names, sizes and shapes of everything in a payload.

    Work and memory are bounded for any payload.

    Raises:
        QuantizedCheckpointError: Naming the section and the key.
    """
    schema = _check_header(payload)
    _check_sections(payload, schema=schema)
    for name in PLAIN_SECTIONS[schema]:
        if type(payload[name]) is not dict:
            raise _wrong(name, payload[name], expected='a dict')
        # The digest sorts by key, so all keys must have one type.
        numbers = schema == 1 and name == 'meta'
        _PlainCheck(int_keys=numbers).check(payload[name], name=name)
    _check_recipe(payload['recipe'])
    for name, entry in _named(payload, 'weights'):
        _check_weight(name, entry)
    for section in TENSOR_SECTIONS:
        for name, tensor in _named(payload, section):
            _check_tensor(tensor, where=f'{section} {shown(name)}')
    _check_overlap(payload)


def _check_header(payload: Mapping[str, Any]) -> int:
    if not is_quantized(payload):
        raise QuantizedCheckpointError(
            'this is not a quantized checkpoint of taskptq (it has no '
            '"taskptq" header): pass the file that quantization wrote'
        )
    header = payload['taskptq']
    schema = header['schema']
    if type(schema) is not int or schema not in READABLE:
        raise QuantizedCheckpointError(
            f'the quantized checkpoint has schema {shown(schema)} (written '
            f'by taskptq {shown(header.get("version", "unknown"))[1:-1]}), '
            f'but this version reads schema {READABLE[0]} to '
            f'{CONTAINER_SCHEMA}: '
            'install the version that wrote it, or quantize again'
        )
    if header.keys() != {'schema', 'version'} or (
        type(header['version']) is not str
    ):
        raise _wrong('taskptq', header, expected='schema and version')
    return schema


def _check_sections(payload: Mapping[str, Any], *, schema: int) -> None:
    expected = sections(schema)
    missing = [name for name in expected if name not in payload]
    if missing:
        raise QuantizedCheckpointError(
            f'the quantized checkpoint lacks the section(s) {missing}: it is '
            'damaged, quantize again'
        )
    for name in payload:
        if name not in expected:
            raise QuantizedCheckpointError(
                f'the quantized checkpoint has the section {shown(name)}, '
                'which no digest covers: quantize again'
            )
    digest = payload['digest']
    if (
        type(digest) is not str
        or len(digest) != DIGEST_LENGTH
        or (digest.strip('0123456789abcdef'))
    ):
        raise _wrong('digest', digest, expected='64 hexadecimal digits')
    if not isinstance(payload['state_dict'], str):
        raise _wrong('state_dict', payload['state_dict'], expected='a note')


def _wrong(
    name: str, value: object, *, expected: str
) -> QuantizedCheckpointError:
    text = shown(value) if isinstance(value, LEAVES) else ''
    return QuantizedCheckpointError(
        f'the section {name!r} of the quantized checkpoint is '
        f'{text or type(value).__name__} instead of {expected}: it is '
        'damaged, quantize again'
    )


def _named(payload: Mapping[str, Any], section: str) -> list[tuple[str, Any]]:
    """Return the items of a section whose keys are checked to be names."""
    content = payload[section]
    if type(content) is not dict:
        raise _wrong(section, content, expected='a dict')
    if len(content) > MAX_TENSORS:
        raise _wrong(
            section, content, expected=f'at most {MAX_TENSORS:,} entries'
        )
    for name in content:
        if type(name) is not str or len(name) > MAX_NAME:
            raise QuantizedCheckpointError(
                f'the section {section!r} of the quantized checkpoint has '
                f'the key {shown(name)}, which is not the name of a tensor: '
                'it is damaged, quantize again'
            )
    return list(content.items())


@dataclass
class _PlainCheck:
    """Count the values of a section, each as often as it would be written.

    Lists that share items are small in memory and explode when written;
    circular ones never end.
    """

    int_keys: bool
    nodes: int = 0
    text: int = 0

    def check(self, value: object, *, name: str, depth: int = 0) -> None:
        """Check one value and everything in it."""
        self.nodes += 1
        if isinstance(value, str):
            self.text += len(value)
        if self.nodes > MAX_NODES or self.text > MAX_TEXT:
            raise QuantizedCheckpointError(
                f'the section {name.partition(".")[0]!r} of the quantized '
                f'checkpoint holds more than {MAX_NODES:,} values or '
                f'{MAX_TEXT:,} characters'
            )
        if depth > MAX_DEPTH:
            raise QuantizedCheckpointError(
                f'the quantized checkpoint is nested too deeply at '
                f'{shown(name)}'
            )
        if type(value) is dict:
            for key, part in value.items():
                self._check_key(key, name=name)
                self.check(part, name=f'{name}.{key}', depth=depth + 1)
        elif type(value) in (list, tuple):
            assert isinstance(value, list | tuple)
            for part in value:
                self.check(part, name=f'{name}[]', depth=depth + 1)
        elif type(value) not in LEAVES:
            raise QuantizedCheckpointError(
                f'{shown(name)} of the quantized checkpoint is a '
                f'{type(value).__name__}, which is not plain data'
            )

    def _check_key(self, key: object, *, name: str) -> None:
        allowed = (str, int) if self.int_keys else (str,)
        if type(key) not in allowed or (
            type(key) is str and len(key) > MAX_NAME
        ):
            raise QuantizedCheckpointError(
                f'{shown(name)} of the quantized checkpoint has the key '
                f'{shown(key)}, but keys must be str (of at most {MAX_NAME} '
                'letters)'
            )
        self.text += len(str(key))


def _check_recipe(recipe: Mapping[str, Any]) -> None:
    qconfig = recipe.get('qconfig')
    if not isinstance(qconfig, dict):
        return
    for name in ('overrides', 'keep_float', 'edges'):
        patterns = qconfig.get(name)
        if isinstance(patterns, list) and len(patterns) > MAX_PATTERNS:
            raise QuantizedCheckpointError(
                f'recipe.qconfig.{name} of the quantized checkpoint has '
                f'{len(patterns):,} entries; at most {MAX_PATTERNS:,} are '
                'read'
            )


def _check_weight(name: str, entry: object) -> None:
    where = f'weight {shown(name)}'
    if type(entry) is not dict:
        raise _bad(where, f'is a {type(entry).__name__}, not a dict')
    if entry.keys() != set(WEIGHT_FIELDS):
        raise QuantizedCheckpointError(
            f'the entry of {where} has the fields '
            f'{shown(sorted(map(str, entry))[:9])} instead of '
            f'{sorted(WEIGHT_FIELDS)}: the quantized checkpoint is damaged, '
            'quantize again'
        )
    bits, low, shape = (entry[k] for k in ('num_bits', 'quant_min', 'shape'))
    if type(bits) is not int or not 1 <= bits <= MAX_CODE_BITS:
        raise _bad(
            where, f'has num_bits={shown(bits)}; 1 to {MAX_CODE_BITS} are read'
        )
    lowest = (0, -(2 ** (bits - 1)))
    if type(low) is not int or low not in lowest:
        raise _bad(
            where,
            f'has quant_min={shown(low)}; {bits}-bit grids start at '
            f'{lowest[0]} or {lowest[1]}',
        )
    if (
        type(shape) is not list
        or len(shape) > MAX_DIMS
        or not all(type(n) is int and 0 <= n < 1 << 40 for n in shape)
    ):
        raise _bad(where, f'has the shape {shown(shape)}')
    packed = entry['packed']
    _check_tensor(packed, where=where)
    expected = packed_length(math.prod(shape), num_bits=bits)
    if packed.dtype != torch.uint8 or packed.shape != (expected,):
        raise _bad(
            where,
            f'is packed into {packed.numel():,} elements of {packed.dtype}, '
            f'but {bits}-bit codes of shape {shape} take {expected:,} bytes',
        )


def _check_tensor(tensor: object, *, where: str) -> None:
    if type(tensor) is not Tensor:
        raise _bad(where, f'is a {type(tensor).__name__}, not a tensor')
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_meta:
        raise _bad(where, 'is a sparse, nested or meta tensor')
    if tensor.dtype not in DTYPES:
        raise _bad(where, f'has the dtype {tensor.dtype}')
    if tensor.dim() > MAX_DIMS:
        raise _bad(where, f'has {tensor.dim()} dimensions')
    if not tensor.is_contiguous() or tensor.is_conj() or tensor.is_neg():
        raise _bad(where, 'is a view, not contiguous in memory')


def _bad(where: str, problem: str) -> QuantizedCheckpointError:
    return QuantizedCheckpointError(
        f'{where} of the quantized checkpoint {problem}: it is damaged, '
        'quantize again'
    )


def _check_overlap(payload: Mapping[str, Any]) -> None:
    """Refuse tensors that share memory: their total size is unbounded."""
    stored: dict[int, int] = {}
    total = 0
    for _, tensor in tensors(payload):
        storage = tensor.untyped_storage()
        stored[storage.data_ptr()] = storage.nbytes()
        total += tensor.numel() * tensor.element_size()
    if total > sum(stored.values()):
        raise QuantizedCheckpointError(
            f'the tensors of the quantized checkpoint take {total:,} bytes '
            f'but share {sum(stored.values()):,}: it is damaged, quantize '
            'again'
        )
