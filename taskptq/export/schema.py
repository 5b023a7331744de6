"""What a quantized checkpoint is: its sections, its digest, its errors."""
from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

SCHEMA = 1
SECTIONS = ('recipe', 'weights', 'quantizers', 'float', 'digest', 'meta')
WEIGHT_FIELDS = ('packed', 'shape', 'num_bits', 'quant_min')
# In the place of the weights: a runner that doesn't know this format would
# load a mapping non-strictly and evaluate random weights; this stops it.
STATE_DICT_NOTE = (
    'taskptq quantized file: test it with the q.py written beside it, or with '
    'any config that has PTQHook in its custom_hooks'
)


class QuantizedCheckpointError(RuntimeError):
    """A quantized checkpoint cannot be written, read, or applied."""


def is_quantized(checkpoint: object) -> bool:
    """Whether a loaded checkpoint is one of ours, of any schema."""
    if not isinstance(checkpoint, Mapping):
        return False
    header = checkpoint.get('taskptq')
    return isinstance(header, Mapping) and 'schema' in header


def plain(value: Any, *, name: str) -> Any:
    """Copy nested data into builtin types that every reader accepts.

    Args:
        value: Mappings, sequences, str, int, float, bool, None.
        name: What ``value`` is called in the error.

    Raises:
        QuantizedCheckpointError: If anything else is found.
    """
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str | int):
                raise QuantizedCheckpointError(
                    f'{name} has the key {key!r}, but keys of a quantized '
                    'checkpoint must be str or int'
                )
        return {k: plain(v, name=f'{name}.{k}') for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v, name=f'{name}[{i}]') for i, v in enumerate(value)]
    if value is None or type(value) in (str, int, float, bool):
        return value
    raise QuantizedCheckpointError(
        f'{name} is a {type(value).__name__}, but a quantized checkpoint '
        'holds plain types only: pass str, int, float, bool, None, dict or '
        'list'
    )


def compute_digest(payload: Mapping[str, Any]) -> str:
    """Return the sha256 over all tensors and over what they mean.

    Covers names, dtypes, shapes and bytes of the tensors, the schema, the
    recipe and the weights' descriptions; not ``meta``.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(_tensors(payload), key=lambda item: item[0]):
        header = [name, str(tensor.dtype), list(tensor.shape)]
        digest.update(_canonical_json(header))
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    described = {
        'schema': payload['taskptq']['schema'],
        'recipe': payload['recipe'],
        'weights': {
            name: {k: v for k, v in entry.items() if k != 'packed'}
            for name, entry in payload['weights'].items()
        },
    }
    digest.update(_canonical_json(described))
    return digest.hexdigest()


def verify(payload: Mapping[str, Any]) -> None:
    """Check that a payload is complete and unchanged since it was written.

    Raises:
        QuantizedCheckpointError: If it isn't ours, has another schema, lacks
            a section or doesn't match its digest.
    """
    _check_header(payload)
    _check_sections(payload)
    if compute_digest(payload) != payload['digest']:
        raise QuantizedCheckpointError(
            'the digest of the quantized checkpoint does not match its '
            'contents: it was changed after it was written; quantize again or '
            'fetch the file again'
        )


def _check_header(payload: Mapping[str, Any]) -> None:
    if not is_quantized(payload):
        raise QuantizedCheckpointError(
            'this is not a quantized checkpoint of taskptq (it has no '
            '"taskptq" header): pass the file that quantization wrote'
        )
    header = payload['taskptq']
    if header['schema'] != SCHEMA:
        raise QuantizedCheckpointError(
            f'the quantized checkpoint has schema {header["schema"]!r} '
            f'(written by taskptq {header.get("version", "unknown")}), but '
            f'this version reads schema {SCHEMA}: install the version that '
            'wrote it, or quantize again'
        )


def _check_sections(payload: Mapping[str, Any]) -> None:
    missing = [name for name in SECTIONS if name not in payload]
    if missing:
        raise QuantizedCheckpointError(
            f'the quantized checkpoint lacks the section(s) {missing}: it is '
            'damaged, quantize again'
        )
    for name, entry in payload['weights'].items():
        if sorted(entry) != sorted(WEIGHT_FIELDS):
            raise QuantizedCheckpointError(
                f'the entry of weight {name!r} has the fields '
                f'{sorted(entry)} instead of {sorted(WEIGHT_FIELDS)}: the '
                'quantized checkpoint is damaged, quantize again'
            )


def _tensors(payload: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for name, entry in payload['weights'].items():
        yield f'weights/{name}', entry['packed']
    for section in ('quantizers', 'float'):
        for name, tensor in payload[section].items():
            yield f'{section}/{name}', tensor


def _canonical_json(value: Any) -> bytes:
    text = json.dumps(value, sort_keys=True, separators=(',', ':'))
    return text.encode()
