"""Points of a layer that are quantized, and their settings as plain dicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taskptq.core.settings import Items, Pattern, Table, check_keys, refuse

OPERANDS = ('query', 'key', 'value')
POINTS = ('weight', 'activation', 'attention', *OPERANDS, 'softmax')
# Points whose tensors have heads.
HEADED = ('attention', *OPERANDS, 'softmax')
KEYS = (
    *POINTS,
    'edge_bits',
    'edges',
    'depthwise_bits',
    'overrides',
    'keep_float',
    'products',
    'deploy',
    'sparsity',
    'size',
)
SPEC_KEYS = ('num_bits', 'symmetric', 'signed')
OWN_KEYS = ('type', *SPEC_KEYS, 'per_channel', 'per_head', 'observer')
# Every layer tries every pattern.
MAX_OVERRIDES = 1000
DEFAULTS: dict[str, dict[str, Any]] = {
    'weight': {
        'type': 'AffineQuantizer',
        'num_bits': 8,
        'symmetric': True,
        'signed': None,
        'per_channel': True,
        'observer': {'type': 'MinMaxObserver'},
    },
    'activation': {
        'type': 'AffineQuantizer',
        'num_bits': 8,
        'symmetric': False,
        'signed': None,
        'per_channel': False,
        'observer': {'type': 'MinMaxObserver'},
    },
}


def complete_points(config: Mapping[str, Any]) -> dict[str, Any]:
    """Complete the settings of every point."""
    weight = merge(DEFAULTS['weight'], config.get('weight'))
    activation = merge(DEFAULTS['activation'], config.get('activation'))
    shared = {**activation, 'per_channel': False} if activation else activation
    attention = merge(shared, config.get('attention'))
    operands = {name: merge(attention, config.get(name)) for name in OPERANDS}
    return {
        'weight': weight,
        'activation': activation,
        'attention': attention,
        **operands,
        'softmax': merge(shared, config.get('softmax')),
    }


def check_overrides(overrides: Any) -> tuple[Mapping[str, Any], ...]:
    """Check the shape of every override."""
    rule = Items(
        of=Table(), what='a list of dict(pattern=...)', most=MAX_OVERRIDES
    )
    rule.read(overrides, name='qconfig.overrides')
    for number, override in enumerate(overrides):
        name = f'qconfig.overrides[{number}]'
        check_keys(override, ('pattern', *POINTS), name=name)
        if 'pattern' not in override:
            raise refuse(name, override, 'give it a pattern of layer names')
        Pattern().read(override['pattern'], name=f'{name}.pattern')
        check_shapes(override, where=name)
    return tuple(overrides)


def check_shapes(config: Mapping[str, Any], *, where: str) -> None:
    """Refuse points and observers that are not dicts."""
    for point in POINTS:
        given = config.get(point)
        if given is None or given is False:
            continue
        name = f'{where}.{point}'
        if not isinstance(given, Mapping):
            raise refuse(
                name, given, 'give a dict, or False to leave it float'
            )
        Table().read(given, name=name)
        observer = Table(optional=True)
        observer.read(given.get('observer'), name=f'{name}.observer')


def overridden(
    points: Mapping[str, Any], override: Mapping[str, Any]
) -> dict[str, Any]:
    """Apply one override; its ``attention`` reaches q, k and v first."""
    merged = {}
    for point, settings in points.items():
        if point in OPERANDS:
            general = override.get('attention')
            settings = merge(settings, general)
        merged[point] = merge(settings, override.get(point))
    return merged


def merge(base: Any, update: Any) -> Any:
    """Settings of a point with some of them replaced; False is float."""
    if update is None:
        return base
    if update is False:
        return False
    merged = dict(base) if base is not False else dict(DEFAULTS['activation'])
    if update.get('type', merged['type']) != merged['type']:
        # Further arguments belong to the quantizer they were given for.
        common = {*DEFAULTS['weight'], 'per_head'}
        merged = {k: v for k, v in merged.items() if k in common}
    merged.update({k: v for k, v in update.items() if k != 'observer'})
    observer = update.get('observer')
    if observer is not None:
        same = observer.get('type') in (None, merged['observer']['type'])
        inherited = merged['observer'] if same else {}
        merged['observer'] = {**inherited, **observer}
    return merged


def written(settings: Any) -> str:
    """Return settings as text."""
    try:
        return repr(settings)
    except ValueError:
        # Python refuses to write numbers of thousands of digits.
        return f'unwritable {id(settings)}'


def at_least(settings: Any, num_bits: int) -> Any:
    """Return the settings of a point with at least some bits."""
    if settings is False:
        return False
    return {**settings, 'num_bits': max(settings['num_bits'], num_bits)}


def plain(value: Any) -> Any:
    """Return settings as plain dicts and lists."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
