"""QConfig: which layer is quantized how."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import taskptq.core as core
from taskptq.core import (
    AlignedQuantizer,
    AttentionOutputObserver,
    Observer,
    PowerOfTwoQuantizer,
    Quantizer,
    QuantizerConfig,
    QuantSpec,
)
from taskptq.modules.base import Scheme
from taskptq.prepare.patterns import matches

Resolve = Callable[[str, str], type]

OPERANDS = ('query', 'key', 'value')
POINTS = ('weight', 'activation', 'attention', *OPERANDS, 'softmax')
# Points whose tensors have heads.
HEADED = ('attention', *OPERANDS, 'softmax')
_SPEC_KEYS = ('num_bits', 'symmetric', 'signed')
_DEFAULTS: dict[str, dict[str, Any]] = {
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


def resolve_in_core(kind: str, name: str) -> type:
    """Find a quantizer or observer class of taskptq.core by its name.

    Raises:
        ValueError: If there is none.
    """
    base = {'quantizer': Quantizer, 'observer': Observer}[kind]
    found = getattr(core, name, None)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f'{name!r} is no {kind} of taskptq.core')
    return found


@dataclass(frozen=True, kw_only=True)
class QConfig:
    """Quantization recipe of a model.

    Args:
        points: Complete settings of each point ('weight', 'activation',
            'query', 'key', 'value', 'softmax', and 'attention', which the
            operands q, k and v inherit from); False leaves one float.
        edge_bits: Bits of the first conv and of the heads' last layers, at
            least; None makes no exception.
        edges: Further name patterns treated as edge.
        overrides: Ordered (pattern, settings of points) pairs; later wins.
        keep_float: Name patterns that stay float.
        resolve: Finds classes by name.
    """

    points: Mapping[str, Any]
    edge_bits: int | None = 8
    edges: tuple[str, ...] = ()
    overrides: tuple[Mapping[str, Any], ...] = ()
    keep_float: tuple[str, ...] = ()
    resolve: Resolve = field(default=resolve_in_core, compare=False)

    @classmethod
    def from_dict(
        cls, config: Mapping[str, Any], *, resolve: Resolve | None = None
    ) -> QConfig:
        """Read the plain form (CONTRIBUTING.md shows every key).

        Args:
            config: Keys weight, activation, attention, query, key, value,
                softmax, edge_bits, edges, overrides, keep_float; all
                optional.
            resolve: (kind, name) -> class, for quantizers and observers.

        Raises:
            ValueError: On an unknown key or a value that cannot be.
        """
        known = {*POINTS, 'edge_bits', 'edges', 'overrides', 'keep_float'}
        _refuse_unknown(config, known, 'qconfig')
        qconfig = cls(
            points=_points(config),
            edge_bits=config.get('edge_bits', 8),
            edges=_patterns(config, 'edges'),
            overrides=_overrides(config),
            keep_float=_patterns(config, 'keep_float'),
            resolve=resolve or resolve_in_core,
        )
        qconfig.check()
        return qconfig

    def check(self) -> None:
        """Build every quantizer once, so that bad settings fail early.

        Raises:
            ValueError: Naming the setting that cannot be.
        """
        if self.edge_bits is not None and type(self.edge_bits) is not int:
            raise ValueError(
                f'qconfig.edge_bits={self.edge_bits!r}: give a number of '
                'bits, or None for no exception'
            )
        self._check_points({}, where='qconfig')
        for override in self.overrides:
            self._check_points(
                override, where=f'qconfig.overrides {override["pattern"]!r}'
            )

    def _check_points(
        self, override: Mapping[str, Any], *, where: str
    ) -> None:
        for point, given in _overridden(self.points, override).items():
            edge = given
            if self.edge_bits is not None:
                edge = _at_least(given, self.edge_bits)
            for settings in (given, edge):
                try:
                    config = self._quantizer_config(point, settings)
                    if config is not None:
                        config.build()
                except (TypeError, ValueError) as error:
                    raise ValueError(f'{where}, {point}: {error}') from error

    def to_dict(self) -> dict[str, Any]:
        """Return the plain form; ``from_dict`` reads it back."""
        points = dict(self.points)
        for name in OPERANDS:
            if points[name] == points['attention']:
                points.pop(name)
        return {
            **{name: _plain(settings) for name, settings in points.items()},
            'edge_bits': self.edge_bits,
            'edges': list(self.edges),
            'overrides': [_plain(override) for override in self.overrides],
            'keep_float': list(self.keep_float),
        }

    def scheme(
        self, name: str, *, edge: bool = False, positions: bool = False
    ) -> Scheme:
        """Return the quantizer recipes of one layer.

        Args:
            name: Qualified name, matched against the overrides.
            edge: Whether it is a first or last layer.
            positions: Whether it projects positions for an attention: they
                are its operands as queries and keys are, and have at least
                the bits of these.
        """
        chosen = {point: self.points[point] for point in POINTS}
        if positions and chosen['query'] is not False:
            chosen['activation'] = _at_least(
                chosen['activation'], chosen['query']['num_bits']
            )
        if edge and self.edge_bits is not None:
            chosen = {
                point: _at_least(settings, self.edge_bits)
                for point, settings in chosen.items()
            }
        for override in self.overrides:
            if matches(name, override['pattern']):
                chosen = _overridden(chosen, override)
        chosen.pop('attention')
        return Scheme(
            **{
                point: self._quantizer_config(point, settings)
                for point, settings in chosen.items()
            }
        )

    def patterns(self) -> dict[str, list[str]]:
        """Return every name pattern, by the argument that holds it."""
        return {
            'qconfig.edges': list(self.edges),
            'qconfig.overrides': [o['pattern'] for o in self.overrides],
            'qconfig.keep_float': list(self.keep_float),
        }

    def _quantizer_config(
        self, point: str, settings: Any
    ) -> QuantizerConfig | None:
        if settings is False:
            return None
        settings = dict(settings)
        observer = dict(settings.pop('observer'))
        spec = {key: settings.pop(key) for key in _SPEC_KEYS}
        per_channel = settings.pop('per_channel')
        per_head = settings.pop('per_head', False)
        if point in HEADED:
            per_channel = per_head
        config = QuantizerConfig(
            spec=QuantSpec(**spec),
            per_channel=per_channel,
            quantizer=self.resolve('quantizer', settings.pop('type')),
            quantizer_kwargs=settings,
            observer=self.resolve('observer', observer.pop('type')),
            observer_kwargs=observer,
        )
        return _of_point(config, point, per_head=per_head)


def _of_point(
    config: QuantizerConfig, point: str, *, per_head: bool
) -> QuantizerConfig:
    """Refuse what a point cannot have; hand ``per_head`` to its searcher."""
    if per_head and point not in HEADED:
        raise ValueError(
            f'per_head=True is for {", ".join(HEADED)}: weights have '
            'per_channel=True'
        )
    if issubclass(config.quantizer, AlignedQuantizer) and (
        point not in ('query', 'key')
    ):
        raise ValueError(
            'AlignedQuantizer is for query and key: give it there, and '
            'another type here'
        )
    if not per_head or not issubclass(
        config.observer, AttentionOutputObserver
    ):
        return config
    if not issubclass(config.quantizer, PowerOfTwoQuantizer):
        raise ValueError(
            'per_head=True with AttentionOutputObserver needs the type '
            'PowerOfTwoQuantizer: for uniform grids choose MSEObserver'
        )
    # It sees all heads at once, and keeps them apart by itself.
    kwargs = {**config.observer_kwargs, 'per_head': True}
    return replace(config, per_channel=False, observer_kwargs=kwargs)


def _points(config: Mapping[str, Any]) -> dict[str, Any]:
    """Complete the settings of every point."""
    weight = _merge(_DEFAULTS['weight'], config.get('weight'), 'weight')
    activation = _merge(
        _DEFAULTS['activation'], config.get('activation'), 'activation'
    )
    attention = _merge(activation, config.get('attention'), 'attention')
    operands = {
        name: _merge(attention, config.get(name), name) for name in OPERANDS
    }
    return {
        'weight': weight,
        'activation': activation,
        'attention': attention,
        **operands,
        'softmax': _merge(activation, config.get('softmax'), 'softmax'),
    }


def _overrides(config: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    overrides = tuple(config.get('overrides', ()))
    for override in overrides:
        if not isinstance(override, Mapping):
            raise ValueError(
                f'qconfig.overrides: {override!r} is no dict(pattern=...)'
            )
        _refuse_unknown(override, {'pattern', *POINTS}, 'overrides')
        if 'pattern' not in override:
            raise ValueError(
                f'qconfig.overrides: {dict(override)} has no pattern'
            )
    return overrides


def _overridden(
    points: Mapping[str, Any], override: Mapping[str, Any]
) -> dict[str, Any]:
    """Apply one override; its ``attention`` reaches q, k and v first."""
    merged = {}
    for point, settings in points.items():
        if point in OPERANDS:
            general = override.get('attention')
            settings = _merge(settings, general, 'attention')
        merged[point] = _merge(settings, override.get(point), point)
    return merged


def _merge(base: Any, update: Any, name: str) -> Any:
    """Settings of a point with some of them replaced; False is float."""
    if update is None:
        return base
    if update is False or update is True:
        if update:
            raise ValueError(f'qconfig.{name}=True: give a dict, or False')
        return False
    if not isinstance(update, Mapping):
        raise ValueError(f'qconfig.{name}={update!r}: give a dict, or False')
    merged = dict(base) if base is not False else dict(_DEFAULTS['activation'])
    if update.get('type', merged['type']) != merged['type']:
        # Further arguments belong to the quantizer they were given for.
        common = {*_DEFAULTS['weight'], 'per_head'}
        merged = {k: v for k, v in merged.items() if k in common}
    merged.update({k: v for k, v in update.items() if k != 'observer'})
    observer = update.get('observer')
    if observer is not None:
        same = observer.get('type') in (None, merged['observer']['type'])
        inherited = merged['observer'] if same else {}
        merged['observer'] = {**inherited, **observer}
    return merged


def _at_least(settings: Any, num_bits: int) -> Any:
    if settings is False:
        return False
    return {**settings, 'num_bits': max(settings['num_bits'], num_bits)}


def _patterns(config: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = config.get(key, ())
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise ValueError(f'qconfig.{key}={value!r}: give a list of patterns')
    return tuple(value)


def _refuse_unknown(
    config: Mapping[str, Any], known: set[str], where: str
) -> None:
    unknown = sorted(set(config) - known)
    if unknown:
        raise ValueError(
            f'{where} has unknown key {unknown[0]!r}: known are '
            f'{", ".join(sorted(known))}'
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
