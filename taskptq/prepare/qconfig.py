"""QConfig: which layer is quantized how."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from taskptq.core.settings import (
    Choice,
    Flag,
    Table,
    Whole,
    check_fields,
    check_keys,
    patterns,
    refuse,
    refusing,
    setting,
    within,
)
from taskptq.core.spec import MAX_WEIGHT_BITS, MIN_BITS
from taskptq.modules.base import Scheme
from taskptq.prepare.deploy import RUNTIMES, for_runtime
from taskptq.prepare.patterns import check_patterns, matches
from taskptq.prepare.point_config import (
    Resolve,
    quantizer_config,
    resolve_imported,
)
from taskptq.prepare.points import (
    DEFAULTS,
    KEYS,
    OPERANDS,
    POINTS,
    at_least,
    check_overrides,
    check_shapes,
    complete_points,
    overridden,
    plain,
    written,
)
from taskptq.prepare.size import SizeConfig, plain_size, read_size
from taskptq.prepare.sparsity import (
    SparsityConfig,
    plain_sparsity,
    read_sparsity,
)


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
        depthwise_bits: Bits of depthwise convolutions, at least: they have
            few weights and multiplications, and with nine weights per
            channel little room to round; None makes no exception.
        overrides: Ordered (pattern, settings of points) pairs; later wins.
        keep_float: Name patterns that stay float.
        products: Whether products that no counterpart owns are quantized;
            None quantizes them.
        deploy: Runtime whose integer layers are simulated: it decides where
            outputs lie on grids, and which zero points there are.
        sparsity: Which share of the weights becomes 0; None keeps all.
        size: How large the file may be; None is as the bits have it.
        resolve: Finds classes by name.

    Raises:
        SettingError: Naming the setting that cannot be.
    """

    points: Mapping[str, Any]
    edge_bits: int | None = setting(
        8, Whole(low=MIN_BITS, high=MAX_WEIGHT_BITS, optional=True)
    )
    edges: tuple[str, ...] = setting((), patterns())
    depthwise_bits: int | None = setting(
        None, Whole(low=MIN_BITS, high=MAX_WEIGHT_BITS, optional=True)
    )
    overrides: tuple[Mapping[str, Any], ...] = ()
    keep_float: tuple[str, ...] = setting((), patterns())
    products: bool | None = setting(None, Flag(optional=True))
    deploy: str | None = setting(None, Choice(choices=RUNTIMES, optional=True))
    sparsity: SparsityConfig | None = None
    size: SizeConfig | None = None
    resolve: Resolve = field(default=resolve_imported, compare=False)

    def __post_init__(self) -> None:
        check_fields(self, name='qconfig')
        for name, kind in (('sparsity', SparsityConfig), ('size', SizeConfig)):
            found = getattr(self, name)
            if not (found is None or isinstance(found, kind)):
                raise refuse(
                    f'qconfig.{name}',
                    found,
                    f'give a {kind.__name__}, or None',
                )
        object.__setattr__(self, 'overrides', check_overrides(self.overrides))
        object.__setattr__(self, '_schemes', {})
        self.check()

    @classmethod
    def from_dict(
        cls, config: Mapping[str, Any], *, resolve: Resolve | None = None
    ) -> QConfig:
        """Read the plain form (taskptq/recipes/README.md has every key).

        Args:
            config: Keys weight, activation, attention, query, key, value,
                softmax, edge_bits, edges, depthwise_bits, overrides,
                keep_float, products, deploy, sparsity, size;
                all optional.
            resolve: (kind, name) -> class, for quantizers and observers.

        Raises:
            SettingError: On an unknown key or a value that cannot be.
        """
        check_keys(config, KEYS, name='qconfig')
        check_shapes(config, where='qconfig')
        config = for_runtime(config)
        return cls(
            points=complete_points(config),
            edge_bits=config.get('edge_bits', 8),
            depthwise_bits=config.get('depthwise_bits'),
            edges=config.get('edges', ()),
            overrides=config.get('overrides', ()),
            keep_float=config.get('keep_float', ()),
            products=config.get('products'),
            deploy=config.get('deploy'),
            sparsity=read_sparsity(config.get('sparsity')),
            size=read_size(config.get('size')),
            resolve=resolve or resolve_imported,
        )

    def check(self) -> None:
        """Build every quantizer once, so that bad settings fail early.

        Raises:
            SettingError: Naming the setting that cannot be.
        """
        points = Table(keys=POINTS, required=POINTS)
        points.read(self.points, name='qconfig.points')
        check_shapes(self.points, where='qconfig')
        for name, settings in self.points.items():
            if settings is not False:
                complete = Table(required=tuple(DEFAULTS['weight']))
                complete.read(settings, name=f'qconfig.{name}')
        for argument, found in self.patterns().items():
            check_patterns(found, argument=argument)
        seen: set[str] = set()
        self._check_points({}, where='qconfig', seen=seen)
        for name, settings in self.points.items():
            self._check_kind(name, settings)
        for number, override in enumerate(self.overrides):
            where = f'qconfig.overrides[{number}]'
            self._check_points(override, where=where, seen=seen)

    def _check_points(
        self, override: Mapping[str, Any], *, where: str, seen: set[str]
    ) -> None:
        for point, given in overridden(self.points, override).items():
            key = f'{point} {written(given)}'
            # Most overrides repeat what others say, or change one point.
            if key in seen:
                continue
            # What a point inherits was checked where it was said.
            source = point
            if not override.get(point) and override.get('attention'):
                source = 'attention' if point in OPERANDS else point
            self._check_point(point, given, where=f'{where}.{source}')
            seen.add(key)

    def _check_kind(self, name: str, settings: Any) -> None:
        """Refuse bits at which a point's own type would never be used."""
        config = quantizer_config(name, settings, resolve=self.resolve)
        if config is None:
            return
        named = self.resolve('quantizer', settings['type'])
        # Operands of attention take the type of other inputs, not the bits.
        general = self.points['activation']
        own = name in ('weight', 'activation') or not general
        if not own and general['type'] == settings['type']:
            return
        if config.quantizer is not named:
            raise refuse(
                f'qconfig.{name}.num_bits',
                settings['num_bits'],
                f'{named.__name__} has fewer: give the bits of its levels, '
                'such as 1 for binary and 2 for ternary ones',
            )

    def _check_point(self, point: str, given: Any, *, where: str) -> None:
        """Build the quantizer of a point, and the one of edge layers."""
        self._build_once(point, given, where=where)
        for bits in (self.edge_bits, self.depthwise_bits):
            raised = given if bits is None else at_least(given, bits)
            if raised != given:
                self._build_once(point, raised, where=where)

    def _build_once(self, point: str, settings: Any, *, where: str) -> None:
        with within(where):
            config = quantizer_config(point, settings, resolve=self.resolve)
        if config is None:
            return
        with refusing(f'{where}.observer', settings['observer']):
            config.observer(config.spec, **config.observer_kwargs)
        with refusing(where, settings):
            config.build()

    @property
    def with_products(self) -> bool:
        """Whether products that no counterpart owns are quantized."""
        return self.products is not False

    def to_dict(self) -> dict[str, Any]:
        """Return the plain form; ``from_dict`` reads it back."""
        points = dict(self.points)
        for name in OPERANDS:
            if points[name] == points['attention']:
                points.pop(name)
        return {
            **{name: plain(settings) for name, settings in points.items()},
            'edge_bits': self.edge_bits,
            'edges': list(self.edges),
            **self._depthwise(),
            'overrides': [plain(override) for override in self.overrides],
            'keep_float': list(self.keep_float),
            # A file records which products it quantizes; names that say
            # nothing of them keep their digests.
            **({'products': True} if self.products else {}),
            **({'deploy': self.deploy} if self.deploy else {}),
            **plain_sparsity(self.sparsity),
            **plain_size(self.size),
        }

    def _depthwise(self) -> dict[str, Any]:
        # Left out where it is off, as below.
        if self.depthwise_bits is None:
            return {}
        return {'depthwise_bits': self.depthwise_bits}

    def scheme(
        self,
        name: str,
        *,
        edge: bool = False,
        positions: bool = False,
        depthwise: bool = False,
    ) -> Scheme:
        """Return the quantizer recipes of one layer.

        Args:
            name: Qualified name, matched against the overrides.
            edge: Whether it is a first or last layer.
            positions: Whether it projects positions for an attention: they
                are its operands as queries and keys are, and have at least
                the bits of these.
            depthwise: Whether it is a depthwise convolution.
        """
        used = tuple(
            number
            for number, override in enumerate(self.overrides)
            if matches(name, override['pattern'])
        )
        # Hundreds of layers share a few schemes.
        key = (edge, positions, depthwise, used)
        found: dict[Any, Scheme] = self.__dict__['_schemes']
        if key not in found:
            bits = (edge and self.edge_bits, depthwise and self.depthwise_bits)
            chosen = self._chosen(positions=positions, least=bits, used=used)
            found[key] = self._scheme(name, chosen, sums=len(used) > 1)
        return found[key]

    def _scheme(
        self, name: str, chosen: Mapping[str, Any], *, sums: bool
    ) -> Scheme:
        if sums:
            # Each override was checked alone; their sum is known only here.
            for point, settings in chosen.items():
                where = f'qconfig, layer {name!r}, {point}'
                self._build_once(point, settings, where=where)
        return Scheme(
            **{
                point: quantizer_config(point, settings, resolve=self.resolve)
                for point, settings in chosen.items()
            }
        )

    def _chosen(
        self,
        *,
        positions: bool,
        least: tuple[int | None, ...],
        used: tuple[int, ...],
    ) -> dict[str, Any]:
        """Return the settings of a layer's points, by field of a Scheme."""
        chosen = {point: self.points[point] for point in POINTS}
        if positions and chosen['query'] is not False:
            chosen['activation'] = at_least(
                chosen['activation'], chosen['query']['num_bits']
            )
        for bits in filter(None, least):
            chosen = {
                point: at_least(settings, bits)
                for point, settings in chosen.items()
            }
        for number in used:
            chosen = overridden(chosen, self.overrides[number])
        operand = chosen.pop('attention')
        if self.with_products:
            chosen['operand'] = operand
        return chosen

    def patterns(self) -> dict[str, list[str]]:
        """Return every name pattern, by the argument that holds it."""
        return {
            'qconfig.edges': list(self.edges),
            'qconfig.overrides': [o['pattern'] for o in self.overrides],
            'qconfig.keep_float': list(self.keep_float),
            'qconfig.sparsity.keep_dense': list(
                self.sparsity.keep_dense if self.sparsity else ()
            ),
        }
