"""The format of a quantized checkpoint: sections, digest, errors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

SCHEMA = 2
# The form that files have since: the same payload, see ``container``.
CONTAINER_SCHEMA = 3
OLD_SCHEMA = 1
READABLE = (OLD_SCHEMA, SCHEMA)
# Sections of plain data and of named tensors; header, note and digest are
# extra.
PLAIN_SECTIONS = {1: ('recipe', 'meta'), 2: ('recipe', 'structure', 'meta')}
TENSOR_SECTIONS = ('quantizers', 'float')
WEIGHT_FIELDS = ('packed', 'shape', 'num_bits', 'quant_min')
# Stands where the weights are expected: a runner without the hook would load
# a mapping non-strictly and evaluate random weights; a str stops it.
STATE_DICT_NOTE = (
    'taskptq quantized file: test it with the q.py written next to it, or '
    'with any config that has PTQHook in its custom_hooks'
)


class QuantizedCheckpointError(RuntimeError):
    """A quantized checkpoint cannot be written, read, or applied."""


def is_quantized(checkpoint: object) -> bool:
    """Return whether a loaded checkpoint is one of ours, of any schema."""
    if not isinstance(checkpoint, Mapping):
        return False
    header = checkpoint.get('taskptq')
    return isinstance(header, Mapping) and 'schema' in header


def sections(schema: int) -> tuple[str, ...]:
    """Return the names of all sections of a payload."""
    return (
        'taskptq',
        'state_dict',
        *PLAIN_SECTIONS[schema],
        'weights',
        *TENSOR_SECTIONS,
        'digest',
    )


def plain(value: Any, *, name: str) -> Any:
    """Copy nested data into builtin types that every reader accepts.

    Args:
        value: Mappings with str keys, sequences, str, int, float, bool, None.
        name: Name of ``value`` in error messages.

    Raises:
        QuantizedCheckpointError: If it holds anything else.
    """
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise QuantizedCheckpointError(
                    f'{name} has the key {key!r}, but keys of a quantized '
                    'checkpoint must be str: turn it into one'
                )
        return {str(k): plain(v, name=f'{name}.{k}') for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v, name=f'{name}[{i}]') for i, v in enumerate(value)]
    if value is None or type(value) in (str, int, float, bool):
        return value
    raise QuantizedCheckpointError(
        f'{name} is a {type(value).__name__}, but a quantized checkpoint '
        'holds only plain types: pass str, int, float, bool, None, dict or '
        'list'
    )


def compute_digest(payload: Mapping[str, Any]) -> str:
    """Return the sha256 over all tensors and their descriptions.

    It covers names, dtypes, shapes and bytes of the tensors, the schema, the
    weights' descriptions, the recipe and, since schema 2, the structure and
    ``meta``.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors(payload), key=lambda item: item[0]):
        header = [name, str(tensor.dtype), list(tensor.shape)]
        digest.update(_canonical_json(header))
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    digest.update(_canonical_json(described(payload)))
    return digest.hexdigest()


def described(payload: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything covered by the digest apart from tensors."""
    schema = payload['taskptq']['schema']
    covered = ('recipe',) if schema == 1 else PLAIN_SECTIONS[schema]
    return {
        'schema': schema,
        **{name: payload[name] for name in covered},
        'weights': {
            name: {k: v for k, v in entry.items() if k != 'packed'}
            for name, entry in payload['weights'].items()
        },
    }


def tensors(payload: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield (section/name, tensor) for every stored tensor."""
    for name, entry in payload['weights'].items():
        yield f'weights/{name}', entry['packed']
    for section in TENSOR_SECTIONS:
        for name, tensor in payload[section].items():
            yield f'{section}/{name}', tensor


def _canonical_json(value: Any) -> bytes:
    text = json.dumps(value, sort_keys=True, separators=(',', ':'))
    return text.encode()
