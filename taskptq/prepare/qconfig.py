"""QConfig: which layer is quantized how."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import taskptq.core as core
from taskptq.core import (
    AffineQuantizer,
    FloatQuantizer,
    Observer,
    Quantizer,
    QuantizerConfig,
    QuantSpec,
)
from taskptq.core.settings import (
    Choice,
    Flag,
    Table,
    Text,
    Whole,
    check_arguments,
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
from taskptq.prepare.points import (
    DEFAULTS,
    HEADED,
    KEYS,
    OPERANDS,
    OWN_KEYS,
    POINTS,
    SPEC_KEYS,
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

Resolve = Callable[[str, str], type]


def resolve_imported(kind: str, name: str) -> type:
    """Find a quantizer or observer by the name of its class.

    Only classes that have been imported are found; the core's come first.

    Raises:
        ValueError: If there is none.
    """
    base: type = {'quantizer': Quantizer, 'observer': Observer}[kind]
    known = {found.__name__: found for found in _subclasses(base)}
    known |= {
        key: value
        for key, value in vars(core).items()
        if isinstance(value, type)
        and issubclass(value, base)
        and value is not base
    }
    if name not in (*known, base.__name__):
        raise ValueError(
            f'there is no {kind} {name!r}: choose one of {", ".join(known)}, '
            'or import the module that defines it first'
        )
    return known.get(name, base)


def _subclasses(base: type) -> Iterator[type]:
    children: list[type] = base.__subclasses__()
    for found in children:
        yield found
        yield from _subclasses(found)


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

    def _check_point(self, point: str, given: Any, *, where: str) -> None:
        """Build the quantizer of a point, and the one of edge layers."""
        self._build_once(point, given, where=where)
        for bits in (self.edge_bits, self.depthwise_bits):
            raised = given if bits is None else at_least(given, bits)
            if raised != given:
                self._build_once(point, raised, where=where)

    def _build_once(self, point: str, settings: Any, *, where: str) -> None:
        with within(where):
            config = self._quantizer_config(point, settings)
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
        chosen = {point: self.points[point] for point in POINTS}
        if positions and chosen['query'] is not False:
            chosen['activation'] = at_least(
                chosen['activation'], chosen['query']['num_bits']
            )
        for applies, bits in (
            (edge, self.edge_bits),
            (depthwise, self.depthwise_bits),
        ):
            if applies and bits is not None:
                chosen = {
                    point: at_least(settings, bits)
                    for point, settings in chosen.items()
                }
        used = [o for o in self.overrides if matches(name, o['pattern'])]
        for override in used:
            chosen = overridden(chosen, override)
        operand = chosen.pop('attention')
        if self.with_products:
            chosen['operand'] = operand
        if len(used) > 1:
            # Each was checked alone; their sum is known only here.
            for point, settings in chosen.items():
                where = f'qconfig, layer {name!r}, {point}'
                self._build_once(point, settings, where=where)
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
            'qconfig.sparsity.keep_dense': list(
                self.sparsity.keep_dense if self.sparsity else ()
            ),
        }

    def _quantizer_config(
        self, point: str, settings: Any
    ) -> QuantizerConfig | None:
        if settings is False:
            return None
        settings = dict(settings)
        observer = dict(settings.pop('observer'))
        spec = {key: settings.pop(key) for key in SPEC_KEYS}
        flag = Flag()
        per_channel = flag.read(
            settings.pop('per_channel'), name='per_channel'
        )
        per_head = flag.read(settings.pop('per_head', False), name='per_head')
        if point == 'operand':
            point = 'attention'
        if per_channel and point not in ('weight', 'activation'):
            raise refuse(
                'per_channel',
                per_channel,
                'give it to weights and activations only; operands of '
                'attention have per_head',
            )
        if point in HEADED:
            per_channel = per_head
        quantizer = self._find('quantizer', settings.pop('type'), Quantizer)
        check_arguments(
            quantizer,
            settings,
            name='',
            own=('self', 'spec', 'observer'),
            also=OWN_KEYS,
        )
        with within('observer'):
            observer_type = self._find(
                'observer', observer.pop('type'), Observer
            )
        check_arguments(
            observer_type,
            observer,
            name='observer',
            own=('self', 'spec', 'num_heads', 'make', 'inner'),
            also=('type',),
        )
        config = QuantizerConfig(
            spec=QuantSpec(**spec),
            per_channel=per_channel,
            quantizer=quantizer,
            quantizer_kwargs=settings,
            observer=observer_type,
            observer_kwargs=observer,
        )
        return _of_point(config, point, per_head=per_head)

    def _find(self, kind: str, name: Any, base: type) -> Any:
        """Find the class of a point's ``type``."""
        name = Text(what=f'the name of a registered {kind}').read(
            name, name='type'
        )
        with refusing('type', name):
            found = self.resolve(kind, name)
        if (
            not (isinstance(found, type) and issubclass(found, base))
            or found is base
        ):
            raise refuse(
                'type',
                name,
                f'give the name of a registered subclass of {base.__name__}',
            )
        return found


def _of_point(
    config: QuantizerConfig, point: str, *, per_head: bool
) -> QuantizerConfig:
    """Refuse what a point cannot have; hand ``per_head`` to its searcher."""
    if per_head and point not in HEADED:
        raise refuse(
            'per_head',
            True,
            f'give it to {", ".join(HEADED)} only; weights have per_channel',
        )
    _check_types(config, point)
    head_quantizer = config.observer.head_quantizer
    if not head_quantizer:
        return config
    own = config.observer_kwargs.get('per_head', False) is True
    if (per_head or own) and not config.quantizer.takes_head_grids:
        raise refuse(
            'per_head' if per_head else 'observer.per_head',
            True,
            f'give the type {head_quantizer} as well, or for uniform grids '
            'the MSEObserver',
        )
    if not per_head:
        return config
    # It sees all heads at once, and keeps them apart by itself.
    kwargs = {**config.observer_kwargs, 'per_head': True}
    return replace(config, per_channel=False, observer_kwargs=kwargs)


def _check_types(config: QuantizerConfig, point: str) -> None:
    """Refuse grids that cannot hold what a point carries."""
    quantizer, observer = config.quantizer, config.observer
    kinds_of_weight = (AffineQuantizer, FloatQuantizer)
    if point == 'weight' and not issubclass(quantizer, kinds_of_weight):
        raise refuse(
            'type',
            quantizer.__name__,
            'give an AffineQuantizer, since weights are stored as integers '
            '(a FloatQuantizer keeps them float)',
        )
    kinds: tuple[tuple[str, type[Quantizer] | type[Observer]], ...] = (
        ('type', quantizer),
        ('observer.type', observer),
    )
    for key, found in kinds:
        if found.points is not None and point not in found.points:
            raise refuse(
                key,
                found.__name__,
                f'{found.__name__} is for {" and ".join(found.points)} only: '
                'give it there, and another type here',
            )
    spec = config.spec
    if point == 'weight' and spec.num_bits > MAX_WEIGHT_BITS:
        raise refuse(
            'num_bits',
            spec.num_bits,
            f'give weights {MIN_BITS} to {MAX_WEIGHT_BITS} bits; only '
            'activations have more',
        )
    if point == 'weight' and spec.symmetric and spec.signed is False:
        raise refuse(
            'signed',
            False,
            'give None or True, since a symmetric grid without a sign holds '
            'no negative weights',
        )
