"""Files with the state of one unit: written atomically, checked on reading."""

from __future__ import annotations

import hashlib
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from taskptq.core import FloatQuantizer, Quantizer
from taskptq.core.atomic import write_atomically
from taskptq.core.switches import is_weight_quantizer, quantizers
from taskptq.modules.base import QuantModule
from taskptq.prepare.blocks import Unit
from taskptq.reconstruction.rounding.learned import UnitResult

__all__ = [
    'StateError',
    'check_state',
    'content_digest',
    'max_bytes',
    'read_state',
    'write_state',
]

VERSION = 4
KEYS = frozenset(
    {
        'version',
        'digest',
        'result',
        'codes',
        'biases',
        'quantizers',
        'content',
    }
)
# Size allowed besides the numbers, for names and the zip's own tables: per
# tensor, and once.
ENTRY_BYTES = 4 << 10
ROOM_BYTES = 1 << 20
# Errors seen while reading damaged files.
READ_ERRORS = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    OverflowError,
    AssertionError,
    MemoryError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
)


class StateError(ValueError):
    """A state cannot be used; the message says why."""


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state with a digest over its content.

    Args:
        path: Target; written atomically.
        state: ``digest`` of the run, ``result``, ``codes``, ``biases``,
            ``quantizers``.

    Raises:
        DiskFullError: If the disk is full.
    """
    whole = {**state, 'version': VERSION}
    whole['content'] = content_digest(whole)
    write_atomically(path, lambda file: torch.save(whole, file))


def read_state(path: Path, *, limit: int) -> dict[str, Any]:
    """Read a state and check that it is intact.

    Args:
        path: The file.
        limit: Largest size in bytes, from :func:`max_bytes`.

    Raises:
        StateError: If it is damaged, too large, or of another version.
    """
    try:
        _check_size(path, limit=limit)
        state = torch.load(path, map_location='cpu', weights_only=True)
        _check_content(state)
    except StateError:
        raise
    except READ_ERRORS as error:
        raise StateError('it is damaged') from error
    return dict(state)


def _check_content(state: Any) -> None:
    if type(state) is not dict or state.keys() != KEYS:
        raise StateError('it is not a state of this version')
    if type(state['version']) is not int or state['version'] != VERSION:
        raise StateError('it is not a state of this version')
    digests = state['digest'], state['content']
    if not all(type(digest) is str for digest in digests):
        raise StateError('it is damaged')
    content = {k: v for k, v in state.items() if k != 'content'}
    if content_digest(content) != state['content']:
        raise StateError('its content was changed')


def _check_size(path: Path, *, limit: int) -> None:
    """Bound the memory for reading: a size limit and no compression."""
    size = path.stat().st_size
    if size > limit:
        raise StateError(
            f'it has {size:,} bytes, and this unit needs at most {limit:,}'
        )
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    stored = all(e.compress_type == zipfile.ZIP_STORED for e in entries)
    if not stored or sum(entry.file_size for entry in entries) > size:
        raise StateError('it is damaged')


def content_digest(content: Any) -> str:
    """Return a digest of plain types and tensors.

    Raises:
        StateError: If it contains anything else.
    """
    digest = hashlib.sha256()
    _feed(digest, content)
    return digest.hexdigest()


def _feed(digest: Any, node: Any) -> None:
    if type(node) is dict:
        digest.update(f'dict {len(node)};'.encode())
        if not all(isinstance(key, str) for key in node):
            raise StateError('it has names that are not text')
        for key in sorted(node):
            digest.update(f'{len(key)} {key}'.encode())
            _feed(digest, node[key])
    elif type(node) is Tensor:
        _check_plain(node)
        shape = tuple(node.shape)
        digest.update(f'tensor {node.dtype} {shape};'.encode())
        flat = node.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    elif node is None or type(node) in (bool, int, float, str):
        text = repr(node)
        digest.update(f'{len(text)} {text};'.encode())
    else:
        raise StateError(f'it contains a {type(node).__name__}')


def _check_plain(tensor: Tensor) -> None:
    """Refuse tensors that claim more bytes than they store."""
    stored = (
        tensor.layout == torch.strided
        and tensor.device.type != 'meta'
        and not tensor.is_quantized
        and tensor.numel() * tensor.element_size()
        <= tensor.untyped_storage().nbytes()
    )
    if not stored:
        raise StateError('it has a tensor that is not stored completely')


def max_bytes(unit: Unit) -> int:
    """Return the largest size of a unit's state file, in bytes."""
    codes = [
        4 * getattr(module, parameter).numel()
        for _, module in unit.layers()
        for parameter, _ in module.active_slots()
    ]
    biases = [
        bias.numel() * bias.element_size()
        for _, module in unit.layers()
        for parameter, _ in module.active_slots()
        if (bias := module.bias_of(parameter)) is not None
    ]
    ranges = [
        value.numel() * value.element_size()
        for _, quantizer in quantizers(unit.module)
        for value in quantizer.state_dict().values()
    ]
    tensors: list[int] = [*codes, *biases, *ranges]
    return sum(tensors) + ENTRY_BYTES * len(tensors) + ROOM_BYTES


def check_state(
    state: Mapping[str, Any], unit: Unit, *, free_ranges: bool = False
) -> None:
    """Check everything in a state against its unit.

    Args:
        state: State from :func:`read_state`.
        unit: Calibrated unit; left unchanged.
        free_ranges: Whether ranges of weights may differ from the
            calibrated ones.

    Raises:
        StateError: Naming the part that doesn't fit.
    """
    _check_result(state['result'], unit)
    _check_codes(state['codes'], unit)
    _check_biases(state['biases'], unit)
    found = state['quantizers']
    live = dict(quantizers(unit.module))
    if not isinstance(found, dict) or found.keys() != live.keys():
        raise StateError('its quantizers are not those of the unit')
    for name, quantizer in live.items():
        free = {'scale', 'zero_point'} if free_ranges else set()
        _check_quantizer(
            name,
            found[name],
            quantizer,
            free=free if is_weight_quantizer(name) else set(),
        )


def _check_result(result: Any, unit: Unit) -> None:
    expected = UnitResult(name=unit.name).to_dict()
    if not isinstance(result, dict) or result.keys() != expected.keys():
        raise StateError('its result has other fields')
    for name, default in expected.items():
        value = result[name]
        optional = default is None
        wanted = float if optional else type(default)
        if type(value) is not wanted and not (optional and value is None):
            raise StateError(f'its result has {name}={value!r:.40}')
        if type(value) is int and not 0 <= value < 1 << 53:
            raise StateError(f'its result has {name}={value!r:.40}')
    if result['name'] != unit.name:
        raise StateError('it belongs to another unit')


def _check_codes(codes: Any, unit: Unit) -> None:
    if not isinstance(codes, dict):
        raise StateError('its codes have no names')
    for key, value in codes.items():
        layer, parameter = _find_slot(key, unit, what='codes')
        quantizer = layer.weight_values_of(parameter)
        if quantizer is None:
            raise StateError(f'it has codes for {key}, which is float')
        weight: Tensor = getattr(layer, parameter)
        is_float = isinstance(quantizer, FloatQuantizer)
        dtype = weight.dtype if is_float else torch.int32
        _check_tensor(key, value, shape=weight.shape, dtype=dtype)
        if not is_float:
            _check_grid(key, value, quantizer)
        elif not bool(value.isfinite().all()):
            raise StateError(f'the weight of {key} is not finite')


def _find_slot(key: Any, unit: Unit, *, what: str) -> tuple[QuantModule, str]:
    """Return the layer and the weight that a key names."""
    name, _, parameter = str(key).rpartition(':')
    layer = dict(unit.layers()).get(name)
    if layer is None or parameter not in dict(layer.active_slots()):
        raise StateError(f'it has {what} for {key}')
    return layer, parameter


def _check_biases(biases: Any, unit: Unit) -> None:
    if not isinstance(biases, dict):
        raise StateError('its biases have no names')
    for key, value in biases.items():
        layer, parameter = _find_slot(key, unit, what='a bias')
        own = layer.bias_of(parameter)
        if own is None:
            raise StateError(f'it has a bias for {key}, which has none')
        _check_tensor(
            f'the bias of {key}', value, shape=own.shape, dtype=own.dtype
        )
        if not bool(value.isfinite().all()):
            raise StateError(f'the bias of {key} is not finite')


def _check_grid(name: str, codes: Tensor, quantizer: Quantizer) -> None:
    if not codes.numel():
        return
    low, high = (int(bound) for bound in torch.aminmax(codes))
    if low < quantizer.quant_min or high > quantizer.quant_max:
        raise StateError(
            f'codes of {name} lie in [{low}, {high}], the grid in '
            f'[{quantizer.quant_min}, {quantizer.quant_max}]'
        )


def _check_quantizer(
    name: str, state: Any, quantizer: Quantizer, *, free: set[str]
) -> None:
    """Compare with the calibrated one: only learned values may differ.

    Args:
        name: Name of the quantizer.
        state: Its state in the file.
        quantizer: The calibrated one.
        free: Names of further values that may.
    """
    live = quantizer.state_dict()
    if not isinstance(state, dict) or state.keys() != live.keys():
        raise StateError(f'{name} has other fields')
    learned = {id(parameter) for parameter in quantizer.learnable()}
    learnable = {
        key
        for key, parameter in quantizer.named_parameters()
        if id(parameter) in learned
    }
    for key, value in state.items():
        before = live[key].cpu()
        place = f'{name}.{key}'
        _check_tensor(place, value, shape=before.shape, dtype=before.dtype)
        if torch.equal(value, before):
            continue
        if key not in learnable and key not in free:
            raise StateError(f'{place} differs from the calibrated one')
        if not bool(value.isfinite().all()):
            raise StateError(f'{place} is not finite')
        if key == 'scale' and not bool((value > 0).all()):
            raise StateError(f'{place} is not positive')
        if key == 'zero_point':
            _check_grid(place, value, quantizer)


def _check_tensor(
    name: str, value: Any, *, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    if type(value) is not Tensor:
        raise StateError(f'{name} is a {type(value).__name__}, not a tensor')
    if value.shape != shape or value.dtype != dtype:
        raise StateError(
            f'{name} has shape {tuple(value.shape)} and type {value.dtype}, '
            f'expected {tuple(shape)} and {dtype}'
        )
    _check_plain(value)
