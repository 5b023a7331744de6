"""Convert frozen models to plain packed data and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from taskptq.core import Observer, Quantizer, enable
from taskptq.core.base_quantizer import CodedQuantizer
from taskptq.export.files import load, save
from taskptq.export.numbers import (
    by_quantizer,
    model_faults,
    weight_faults,
)
from taskptq.export.packing import pack_codes, unpack_codes
from taskptq.export.schema import (
    SCHEMA,
    STATE_DICT_NOTE,
    QuantizedCheckpointError,
    compute_digest,
    is_quantized,
    plain,
)
from taskptq.export.verification import VerifiedPayload, check, verify
from taskptq.modules.base import QuantModule, quant_modules
from taskptq.version import __version__

__all__ = [
    'QuantizedCheckpointError',
    'VerifiedPayload',
    'check_fit',
    'is_quantized',
    'load',
    'pack_model',
    'save',
    'unpack_model',
    'verify',
]

# An error lists this many mismatches.
MAX_NAMED = 5
INTEGER_DTYPES = (torch.int8, torch.uint8, torch.int16, torch.int32)


class _Slot(NamedTuple):
    """Quantized weight of one counterpart."""

    module: QuantModule
    parameter: str
    quantizer: CodedQuantizer
    quantizer_name: str


class _State(NamedTuple):
    """A model's state; shared tensors appear once, under their first name."""

    slots: dict[str, _Slot]
    quantizers: dict[str, Tensor]
    rest: dict[str, Tensor]


def pack_model(
    model: nn.Module,
    *,
    recipe: Mapping[str, Any],
    meta: Mapping[str, Any],
    structure: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Turn a frozen model into the payload of a quantized checkpoint.

    Args:
        model: Prepared, calibrated and frozen model.
        recipe: Settings in plain types (qconfig, calibration, ...), enough
            to prepare a float model in the same way.
        meta: Information for readers in plain types, e.g. class names.
        structure: Decisions made by preparation (``decisions``,
            ``products``) in plain types; a restore replays them without data.

    Returns:
        The payload, on CPU, sharing no memory with the model.

    Raises:
        QuantizedCheckpointError: If a weight is not frozen on its grid, a
            number is unreadable (NaN, a scale of 0), or ``recipe``, ``meta``
            or ``structure`` holds anything but plain types.
    """
    packed: dict[int, dict[str, Any]] = {}
    for slot in _all_slots(model):
        if slot.quantizer.calibrated:
            weight = getattr(slot.module, slot.parameter)
            # A shared weight is stored once, but checked for each layer.
            packed.setdefault(id(weight), _pack_weight(slot))
    state = _collect(model)
    weights: dict[str, dict[str, Any]] = {}
    rest = dict(state.rest)
    for key, slot in state.slots.items():
        if slot.quantizer.calibrated:
            weights[key] = packed[id(getattr(slot.module, slot.parameter))]
        else:
            rest[key] = getattr(slot.module, slot.parameter)
    payload: dict[str, Any] = {
        'taskptq': {'schema': SCHEMA, 'version': __version__},
        'state_dict': STATE_DICT_NOTE,
        'recipe': plain(recipe, name='recipe'),
        'structure': plain(structure or {}, name='structure'),
        'weights': weights,
        'quantizers': {k: _compact(v) for k, v in state.quantizers.items()},
        'float': {k: _detached(v) for k, v in rest.items()},
        'meta': plain(meta, name='meta'),
    }
    payload['digest'] = compute_digest(payload)
    check(payload)
    return payload


def unpack_model(payload: Mapping[str, Any], model: nn.Module) -> None:
    """Load the packed state into a prepared model.

    It then predicts exactly what the packed model did. A refused payload
    leaves the model unchanged.

    Args:
        payload: From :func:`load` or :func:`pack_model`.
        model: Prepared with the recipe's qconfig, not calibrated.

    Raises:
        QuantizedCheckpointError: If the payload is not valid or doesn't fit
            the model.
    """
    payload = verify(payload)
    _apply(payload, model, check_fit(payload, model))


def check_fit(payload: Mapping[str, Any], model: nn.Module) -> _State:
    """Check that a payload fits a prepared model, without reading its weights.

    Args:
        payload: From :func:`load` or :func:`pack_model`.
        model: Prepared with the recipe's qconfig; may be on 'meta'.

    Returns:
        The model's state, by kind.

    Raises:
        QuantizedCheckpointError: If the payload is not valid or doesn't fit
            the model.
    """
    payload = verify(payload)
    state = _collect(model)
    misfits = [
        *_weight_misfits(payload, state),
        *_name_misfits(payload, state),
        *_shape_misfits(payload, state),
        *model_faults(payload, model),
    ]
    if misfits:
        more = len(misfits) - MAX_NAMED
        raise QuantizedCheckpointError(
            f'the quantized checkpoint does not fit the model '
            f'{type(model).__name__}: {"; ".join(misfits[:MAX_NAMED])}'
            + (f'; and {more} more' if more > 0 else '')
            + '; test it with the config it was quantized with'
        )
    return state


@torch.no_grad()
def _apply(
    payload: Mapping[str, Any], model: nn.Module, state: _State
) -> None:
    for module in model.modules():
        if isinstance(module, Quantizer):
            module.observer = None
            module.drop_prob = 0.0
    tensors = {**payload['quantizers'], **payload['float']}
    model.load_state_dict(tensors, strict=False)
    for key, entry in payload['weights'].items():
        slot = state.slots[key]
        weight: Tensor = getattr(slot.module, slot.parameter)
        codes = unpack_codes(
            entry['packed'],
            num_bits=entry['num_bits'],
            quant_min=entry['quant_min'],
            shape=entry['shape'],
        ).to(weight.device)
        weight.data = slot.quantizer.dequantize(codes).to(weight.dtype)
    for slot in _all_slots(model):
        slot.quantizer.frozen = slot.quantizer.calibrated
    enable(model)


def _collect(model: nn.Module) -> _State:
    """Sort a model's state into weight slots, quantizers and the rest."""
    first: dict[int, str] = {}
    tensors: dict[str, Tensor] = {}
    for key, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise QuantizedCheckpointError(
                f'state {key!r} of the model is a {type(tensor).__name__}, '
                'but a quantized checkpoint holds only tensors: keep it out '
                'of the state_dict'
            )
        if first.setdefault(id(tensor), key) == key:
            tensors[key] = tensor
    slots: dict[str, _Slot] = {}
    for slot in _all_slots(model):
        key = first[id(getattr(slot.module, slot.parameter))]
        slots.setdefault(key, slot)
    quantizer_keys, observer_keys = _keys_of_quantizers(model, set(tensors))
    others = quantizer_keys | observer_keys | slots.keys()
    return _State(
        slots=slots,
        quantizers={k: tensors[k] for k in tensors if k in quantizer_keys},
        rest={k: tensors[k] for k in tensors if k not in others},
    )


def _all_slots(model: nn.Module) -> Iterator[_Slot]:
    for name, module in quant_modules(model):
        for parameter, quantizer_name in module.active_slots():
            quantizer = module.weight_quantizer_of(parameter)
            if quantizer is not None:
                full_name = f'{name}.{quantizer_name}'.lstrip('.')
                yield _Slot(module, parameter, quantizer, full_name)


def _keys_of_quantizers(
    model: nn.Module, keys: set[str]
) -> tuple[set[str], set[str]]:
    """Return the state-dict keys of all quantizers, and of observers."""
    of_quantizers: set[str] = set()
    of_observers: set[str] = set()
    for name, module in model.named_modules():
        if not isinstance(module, Observer | Quantizer):
            continue
        prefix = f'{name}.' if name else ''
        own = {prefix + k for k in module.state_dict()} & keys
        if isinstance(module, Observer):
            of_observers |= own
        else:
            of_quantizers |= own
    return of_quantizers - of_observers, of_observers


def _pack_weight(slot: _Slot) -> dict[str, Any]:
    """Pack a weight that is frozen on its grid, and check that it is."""
    weight: Tensor = getattr(slot.module, slot.parameter).detach()
    quantizer = slot.quantizer
    codes = quantizer.quantize(weight)
    on_grid = quantizer.dequantize(codes)
    if not (
        quantizer.frozen and torch.equal(on_grid.to(weight.dtype), weight)
    ):
        raise QuantizedCheckpointError(
            f'{slot.parameter!r}, the weight of {slot.quantizer_name!r}, is '
            'not frozen on its integer grid: call '
            'taskptq.reconstruction.freeze(model) before packing, and leave '
            'the weights alone afterwards'
        )
    packed = pack_codes(
        codes.cpu(),
        num_bits=quantizer.spec.num_bits,
        quant_min=quantizer.quant_min,
    )
    return {
        'packed': packed,
        'shape': list(weight.shape),
        'num_bits': quantizer.spec.num_bits,
        'quant_min': quantizer.quant_min,
    }


def _weight_misfits(payload: Mapping[str, Any], state: _State) -> list[str]:
    misfits = []
    quantizers = by_quantizer(payload['quantizers'])
    for key, entry in payload['weights'].items():
        slot = state.slots.get(key)
        if slot is None:
            misfits.append(f'the model has no quantized weight {key!r}')
            continue
        weight: Tensor = getattr(slot.module, slot.parameter)
        if list(weight.shape) != entry['shape']:
            misfits.append(
                f'weight {key!r} has shape {entry["shape"]} in the file, '
                f'{list(weight.shape)} in the model'
            )
            continue
        spec = slot.quantizer.spec
        if spec.num_bits != entry['num_bits']:
            misfits.append(
                f'weight {key!r} has {entry["num_bits"]} bits in the file, '
                f'{spec.num_bits} in the model'
            )
        scales = 1 if spec.ch_axis is None else weight.shape[spec.ch_axis]
        fields = quantizers.get(slot.quantizer_name, {})
        misfits += [
            f'weight {key!r} {fault}'
            for fault in weight_faults(entry, fields, num_scales=scales)
        ]
        misfits += _code_misfits(key, entry, slot.quantizer)
    return misfits


def _code_misfits(
    key: str, entry: Mapping[str, Any], quantizer: CodedQuantizer
) -> list[str]:
    """Check codes where a grid has fewer levels than its bits have codes."""
    levels = quantizer.num_levels
    if levels == 2 ** entry['num_bits'] or not entry['packed'].numel():
        return []
    codes = unpack_codes(
        entry['packed'],
        num_bits=entry['num_bits'],
        quant_min=entry['quant_min'],
        shape=entry['shape'],
    )
    most = int(codes.max())
    if most < levels:
        return []
    return [
        f'weight {key!r} has the code {most}, its grid only {levels} levels'
    ]


def _name_misfits(payload: Mapping[str, Any], state: _State) -> list[str]:
    unpacked = state.slots.keys() - payload['weights'].keys()
    misfits = []
    for section, names in (
        ('quantizers', state.quantizers.keys()),
        ('float', state.rest.keys() | unpacked),
    ):
        stored = payload[section].keys()
        misfits += [
            f'the file lacks {name!r}' for name in sorted(names - stored)
        ]
        misfits += [
            f'the model has no {name!r}' for name in sorted(stored - names)
        ]
    return misfits


def _shape_misfits(payload: Mapping[str, Any], state: _State) -> list[str]:
    expected = dict(state.rest)
    for key, slot in state.slots.items():
        expected[key] = getattr(slot.module, slot.parameter)
    return [
        f'{key!r} has shape {list(tensor.shape)} ({tensor.dtype}) in the '
        f'file, {list(expected[key].shape)} ({expected[key].dtype}) in the '
        'model'
        for key, tensor in payload['float'].items()
        if key in expected
        and (
            tensor.shape != expected[key].shape
            or tensor.is_floating_point() != expected[key].is_floating_point()
        )
    ]


def _detached(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().clone()


def _compact(tensor: Tensor) -> Tensor:
    """Store integers (zero points, grids) in the narrowest exact type."""
    tensor = _detached(tensor)
    if tensor.is_floating_point() or tensor.numel() == 0:
        return tensor
    low, high = int(tensor.min()), int(tensor.max())
    for dtype in INTEGER_DTYPES:
        bounds = torch.iinfo(dtype)
        if bounds.min <= low and high <= bounds.max:
            return tensor.to(dtype)
    return tensor
