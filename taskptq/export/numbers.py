"""Check that the numbers of a payload are possible for a quantized model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from taskptq.core import AffineQuantizer, LSQQuantizer, Quantizer
from taskptq.core.head_observer import HEAD_AXIS
from taskptq.export.errors import shown
from taskptq.export.packing import MAX_CODE_BITS

Fields = dict[str, Tensor]
Grid = tuple[int, int]

# Values of the field tau, see README.md of this folder.
LEGAL_TAUS = (0, 1, 2, 4)
# Levels of a grid that are stored by their coefficients.
MAX_LEVELS = 256
# (lowest, highest) code of every possible grid -> bits.
GRIDS: dict[Grid, int] = {
    grid: bits
    for bits in range(1, MAX_CODE_BITS + 1)
    for grid in (
        (0, 2**bits - 1),
        (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1),
    )
}


def number_faults(payload: Mapping[str, Any]) -> Iterator[str]:
    """Yield the faults in the numbers that show without a model.

    Infinity is allowed in the float section, since masks hold it.

    Args:
        payload: Payload whose structure has been checked.
    """
    groups = by_quantizer(payload['quantizers'])
    for name, fields in groups.items():
        for fault in _group_faults(fields):
            yield f'quantizer {shown(name)} {fault}'
    for name, entry in payload['weights'].items():
        fields = groups.get(f'{name}_quantizer', {})
        grid = _grid(fields)
        if grid and not _holds(fields, grid, entry):
            yield (
                f'weight {shown(name)} has codes on the grid '
                f'{_codes_of(entry)}, but its quantizer has the grid {grid}'
            )
    for name, tensor in payload['float'].items():
        if _is_float(tensor) and bool(tensor.isnan().any()):
            yield f'float {shown(name)} holds NaN'


def by_quantizer(section: Mapping[str, Tensor]) -> dict[str, Fields]:
    """Group ``<quantizer>.<field>`` by quantizer."""
    groups: dict[str, Fields] = {}
    for key, tensor in section.items():
        name, _, field = key.rpartition('.')
        groups.setdefault(name, {})[field] = tensor
    return groups


def model_faults(
    payload: Mapping[str, Any], model: nn.Module
) -> Iterator[str]:
    """Yield mismatches between the numbers and the model's quantizers.

    Args:
        payload: Payload without ``number_faults``.
        model: Prepared with the recipe's qconfig.
    """
    groups = by_quantizer(payload['quantizers'])
    for name, module in model.named_modules():
        if not isinstance(module, Quantizer) or name not in groups:
            continue
        owner = model.get_submodule(name.rpartition('.')[0])
        for fault in _spec_faults(groups[name], module, owner=owner):
            yield f'quantizer {shown(name)} {fault}'


def weight_faults(
    entry: Mapping[str, Any], fields: Fields, *, num_scales: int
) -> Iterator[str]:
    """Yield mismatches between a packed weight and its quantizer.

    Args:
        entry: Entry of the section ``weights``.
        fields: State of the weight's quantizer.
        num_scales: Scales required by the weight's shape and the model's
            spec.
    """
    grid = _grid(fields)
    if grid is None:
        yield 'is packed, but its quantizer has no grid'
    elif not _holds(fields, grid, entry):
        yield (
            f'has codes on the grid {_codes_of(entry)}, but its quantizer '
            f'has the grid {grid}'
        )
    scale = fields.get('scale', fields.get('coefficients'))
    if scale is not None and (scale.shape or (1,))[0] != num_scales:
        yield (
            f'has {scale.numel()} scale(s) in the file, {num_scales} in the '
            'model'
        )


def _holds(fields: Fields, grid: Grid, entry: Mapping[str, Any]) -> bool:
    """Whether the codes of a packed weight are those of a grid.

    Levels may be fewer than their bits have codes.
    """
    low, high = _codes_of(entry)
    if 'coefficients' not in fields:
        return grid == (low, high)
    return grid[0] == low and grid[1].bit_length() == entry['num_bits']


def _codes_of(entry: Mapping[str, Any]) -> Grid:
    low = entry['quant_min']
    return low, low + 2 ** entry['num_bits'] - 1


def _grid(fields: Fields) -> Grid | None:
    """Return the grid, or None if it is unset or malformed."""
    grid = fields.get('grid')
    if grid is None or grid.shape != (2,) or _is_float(grid):
        return None
    low, high = grid.tolist()
    return low, high


def _is_float(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _group_faults(fields: Fields) -> Iterator[str]:
    grid_state = fields.get('grid')
    if grid_state is not None and grid_state.numel():
        grid = _grid(fields)
        if grid is None or not (grid in GRIDS or _is_of_levels(fields, grid)):
            yield f'has the grid {shown(grid_state.flatten()[:4].tolist())}'
            return
        yield from _calibrated_faults(fields, grid)
    elif grid_state is not None:
        for field in ('scale', 'coefficients', *_CHECKS):
            tensor = fields.get(field)
            if field != 'tau' and tensor is not None and tensor.numel():
                yield f'has a {field} without a grid'
    for field, tensor in fields.items():
        if _is_float(tensor) and not bool(tensor.isfinite().all()):
            yield f'has a {field} that is not finite'


def _is_of_levels(fields: Fields, grid: Grid) -> bool:
    if 'coefficients' not in fields:
        return False
    return grid[0] == 0 and 1 <= grid[1] < MAX_LEVELS


def _level_faults(coefficients: Tensor) -> Iterator[str]:
    if (
        not coefficients.is_floating_point()
        or coefficients.dim() != 2
        or not coefficients.numel()
    ):
        yield (
            f'has levels of {coefficients.dtype} and shape '
            f'{list(coefficients.shape)}'
        )


def _calibrated_faults(fields: Fields, grid: Grid) -> Iterator[str]:
    if 'coefficients' in fields:
        yield from _level_faults(fields['coefficients'])
        return
    scale = fields.get('scale')
    if scale is None or scale.dim() != 1 or not scale.numel():
        yield 'has a grid, but no scales'
        return
    if not scale.is_floating_point():
        yield f'has scales of {scale.dtype}'
        return
    single = scale.float()
    steps = grid[1] - grid[0]
    if not bool((single > 0).all() and (single * steps).isfinite().all()):
        yield (
            f'has a scale of {_worst(single):g}; scales must be above 0 and '
            f'finite over {steps} steps'
        )
    for field, check in _CHECKS.items():
        if field in fields:
            fault = check(fields[field], scale.numel(), grid)
            if fault:
                yield f'has {fault}'


def _worst(scale: Tensor) -> float:
    wrong = scale[~((scale > 0) & scale.isfinite())]
    return float(wrong[0] if wrong.numel() else scale.max())


def _zero_point_fault(tensor: Tensor, count: int, grid: Grid) -> str:
    if _is_float(tensor) or tensor.shape != (count,):
        return f'{tensor.numel()} zero points of {tensor.dtype}'
    return _outside(tensor, grid, 'a zero point')


def _offset_fault(tensor: Tensor, count: int, grid: Grid) -> str:
    if not tensor.is_floating_point() or tensor.shape != (count,):
        return f'{tensor.numel()} offsets of {tensor.dtype}'
    return _outside(tensor, grid, 'an offset')


def _outside(tensor: Tensor, grid: Grid, what: str) -> str:
    # A bound would wrap around in a narrow dtype.
    wide = tensor.double()
    wrong = wide[~((wide >= grid[0]) & (wide <= grid[1]))]
    if not wrong.numel():
        return ''
    return f'{what} of {wrong[0].item():g} outside its grid {grid}'


def _tau_fault(tensor: Tensor, count: int, grid: Grid) -> str:
    if _is_float(tensor) or tensor.shape not in ((1,), (count,)):
        return f'{tensor.numel()} values of tau of {tensor.dtype}'
    wrong = sorted(set(tensor.tolist()) - set(LEGAL_TAUS))
    return f'tau={wrong[0]}, which is not in {LEGAL_TAUS}' if wrong else ''


def _gain_fault(tensor: Tensor, count: int, grid: Grid) -> str:
    fine = tensor.is_floating_point() and tensor.shape == (count,)
    if not fine or not bool((tensor > 0).all()):
        return 'a gain that is not one positive number per scale'
    return ''


def _affine_fault(tensor: Tensor, count: int, grid: Grid) -> str:
    if not tensor.is_floating_point() or tensor.dim() != 2:
        return f'gamma or beta of shape {list(tensor.shape)}'
    return ''


_CHECKS: dict[str, Callable[[Tensor, int, Grid], str]] = {
    'zero_point': _zero_point_fault,
    'offset': _offset_fault,
    'tau': _tau_fault,
    'gain': _gain_fault,
    'gamma': _affine_fault,
    'beta': _affine_fault,
}


def _spec_faults(
    fields: Fields, quantizer: Quantizer, *, owner: nn.Module
) -> Iterator[str]:
    grid = _grid(fields)
    if grid is None:
        return
    spec = quantizer.spec
    legal = quantizer.legal_grids()
    if grid not in legal:
        yield (
            f'has the grid {grid} in the file, but {spec.num_bits} bits in '
            f'the model ({" or ".join(map(str, legal))})'
        )
    scales = _num_scales(quantizer, owner)
    if (
        scales is not None
        and isinstance(quantizer, AffineQuantizer)
        and fields['scale'].numel() != scales
    ):
        yield (
            f'has {fields["scale"].numel()} scale(s) in the file, {scales} '
            'in the model'
        )
    yield from _affine_spec_faults(fields, quantizer)


def _num_scales(quantizer: Quantizer, owner: nn.Module) -> int | None:
    """Return the number of scales, or None if it takes a run to find out."""
    if quantizer.spec.ch_axis is None:
        return 1
    if isinstance(owner, nn.modules.conv._ConvNd):
        is_input = getattr(owner, 'input_quantizer', None) is quantizer
        return owner.in_channels if is_input else None
    if quantizer.spec.ch_axis != HEAD_AXIS:
        return None
    heads = getattr(owner, 'num_heads', None)
    return heads if isinstance(heads, int) else None


def _affine_spec_faults(fields: Fields, quantizer: Quantizer) -> Iterator[str]:
    zero_point = fields.get('zero_point')
    fixed = isinstance(quantizer, AffineQuantizer) and not (
        isinstance(quantizer, LSQQuantizer) and quantizer.offset is not None
    )
    # In an unsigned symmetric grid, 0 is the lowest code.
    if (
        quantizer.spec.symmetric
        and fixed
        and zero_point is not None
        and (bool(zero_point.any()))
    ):
        yield 'is symmetric, but has zero points other than 0'
    yield from quantizer.state_faults(fields)
