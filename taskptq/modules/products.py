"""Quantize products that a module's own code computes, such as a matmul.

A counterpart replaces a layer; here the layer stays what it is, and the
operands of the products in its methods are quantized on their way into
torch. The owner enters a mode that sees these calls, and has one child,
``products``, with the quantizers of each call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from taskptq.core import Quantizer
from taskptq.modules.base import QuantModule, Scheme, build_quantizer
from taskptq.modules.call_sites import Site
from taskptq.modules.fused_attention import SIGNATURE, attend
from taskptq.modules.memory import shares_memory
from taskptq.modules.nearest_point import nearest_point, say_borrowed
from taskptq.modules.product_calls import ATTENTION, CALLS, ProductCall

WEIGHT = 'weight'
# What an operand is to its product -> setting that it follows.
SETTINGS = {
    'input': 'activation',
    'first': 'operand',
    'second': 'operand',
    'query': 'operand',
    'key': 'operand',
    'value': 'operand',
    'softmax': 'softmax',
}
ROLES = (WEIGHT, *SETTINGS)
_ATTENTION_ROLES = ('query', 'key', 'value', 'softmax')


@dataclass(frozen=True)
class Point:
    """One product: a place in the code, and the roles of its operands.

    Args:
        name: Prefix of its quantizers, e.g. 'matmul_0'.
        place: Where its owner computes it.
        roles: Of its operands, in order: 'weight' and 'input', or 'first'
            and 'second'; of an attention also 'softmax'.
        axis: Output-channel axis of the weight as stored; None has one
            scale.

    Attributes:
        slots: Names of the quantizers of the operands.
    """

    name: str
    place: str
    roles: tuple[str, ...]
    axis: int | None = None
    slots: tuple[str, ...] = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        slots = tuple(self.quantizer(role) for role in self.roles)
        object.__setattr__(self, 'slots', slots)

    @property
    def weight(self) -> str:
        """Name of the weight; '' if it has none."""
        return f'{self.name}_{WEIGHT}' if WEIGHT in self.roles else ''

    def quantizer(self, role: str) -> str:
        """Return the name of the quantizer of an operand."""
        return f'{self.name}_{role}_quantizer'


@dataclass(frozen=True)
class Learning:
    """How new points are made.

    Args:
        observing: Whether their quantizers observe at once.
        taken: ids of parameters that counterparts quantize: they are not
            weights of a point.
    """

    observing: bool
    taken: frozenset[int]


class QuantProducts(QuantModule):
    """Quantizers of the products in the methods of one module.

    A call runs one product. A weight is a parameter of any float layer that
    the owner multiplies by, perhaps a transposed or cut view of it; it is
    quantized as a whole, as that of a counterpart is.

    Args:
        scheme: Recipes of the quantizers.

    Attributes:
        points: Place -> its points, one for each weight.
        borrowed: Place that calibration has not seen -> points of others
            that stand for it, see :func:`nearest_point`.
        learning: How calls from new places get quantizers; None if they get
            none.
        settled: Whether a call from a new place is an error.
    """

    closed_form: ClassVar[bool] = False

    def __init__(self, scheme: Scheme) -> None:
        super().__init__()
        self.scheme = scheme
        self.points: dict[str, list[Point]] = {}
        self.borrowed: dict[str, list[Point]] = {}
        self.learning: Learning | None = None
        self.settled = False
        self._roundings = {}
        self._rounded = {}
        self._biases = {}
        # Of this instance: each has its own calls.
        vars(self)['weight_slots'] = {}
        vars(self)['weight_axes'] = {}

    @property
    def idle(self) -> bool:
        """Whether nothing of it would act on any product now."""
        return (
            self.settled
            and self.learning is None
            and not any(
                child.enabled or child.observing
                for child in self._modules.values()
                if isinstance(child, Quantizer)
            )
        )

    def forward(
        self,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        site: Site,
    ) -> Any:
        """Run a product with quantized operands.

        Args:
            func: Function of torch, one of ``CALLS``.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
            site: Who calls it.

        Raises:
            RuntimeError: If the others are quantized and calibration saw
                this one at no place.
        """
        call = CALLS[func]
        operands = call.operands(args, kwargs)
        if not operands or 0 in [x.numel() for x in operands]:
            return func(*args, **kwargs)
        point = self.meet(call, args, operands, site)
        if point is None:
            self._tell(call, site)
            return func(*args, **kwargs)
        if call is ATTENTION:
            return self._attend(point, func, args, kwargs)
        new = [self._quantized(point, at, x) for at, x in enumerate(operands)]
        args, kwargs = call.replaced(args, kwargs, new)
        return func(*args, **kwargs)

    def meet(
        self,
        call: ProductCall,
        args: Sequence[Any],
        operands: Sequence[Tensor],
        site: Site,
    ) -> Point | None:
        """Return the point of a call; make one while learning.

        Once all is settled, a product that calibration has seen from another
        caller has the point of that one, and the log says so.

        Args:
            call: What is called.
            args: Its positional arguments.
            operands: Its operands.
            site: Who calls it.
        """
        place = f'{site.path} {call.name} {call.signature(operands)}'.strip()
        for known in (self.points, self.borrowed):
            for point in known.get(place, ()):
                if self._fits(point, operands):
                    return point
        if self.learning is not None:
            return self._make(call, args, operands, place)
        return self._borrow(operands, place, site) if self.settled else None

    def _fits(self, point: Point, operands: Sequence[Tensor]) -> bool:
        """Whether a point has no weight, or that of these operands."""
        if not point.weight:
            return True
        return len(operands) == 2 and shares_memory(
            operands[point.roles.index(WEIGHT)], getattr(self, point.weight)
        )

    def _borrow(
        self, operands: Sequence[Tensor], place: str, site: Site
    ) -> Point | None:
        """Find the point of the same product at another place."""
        fitting = [p for p in self.all_points() if self._fits(p, operands)]
        point = nearest_point(fitting, place=place)
        if point is not None:
            self.borrowed.setdefault(place, []).append(point)
            say_borrowed(site, place=place, of=point.place)
        return point

    def _make(
        self,
        call: ProductCall,
        args: Sequence[Any],
        operands: Sequence[Tensor],
        place: str,
    ) -> Point:
        """Make the quantizers of a new place."""
        name = f'{call.name}_{len(self.all_points())}'
        if call is ATTENTION:
            point = Point(name, place, _ATTENTION_ROLES)
            self.add(point, None)
            return point
        assert self.learning is not None
        axes = call.output_axes(args)
        for at, operand in enumerate(operands):
            weight = stored_weight(operand)
            if weight is None or id(weight) in self.learning.taken:
                continue
            roles = ['input', 'input']
            roles[at] = WEIGHT
            axis = stored_axis(operand, weight, axes[at])
            point = Point(name, place, tuple(roles), axis)
            self.add(point, weight)
            return point
        point = Point(name, place, ('first', 'second'))
        self.add(point, None)
        return point

    def add(self, point: Point, weight: nn.Parameter | None) -> None:
        """Register a point and build its quantizers.

        Args:
            point: What is multiplied where.
            weight: Parameter of the role 'weight', if there is one.
        """
        self.points.setdefault(point.place, []).append(point)
        for role in point.roles:
            if role != WEIGHT:
                config = getattr(self.scheme, SETTINGS[role])
                quantizer = build_quantizer(config)
                self._register(point.quantizer(role), quantizer)
        if weight is None:
            return
        slot = point.quantizer(WEIGHT)
        self.register_parameter(point.weight, weight)
        self.weight_slots[point.weight] = slot
        self.weight_axes[point.weight] = point.axis  # type: ignore[assignment]
        quantizer = build_quantizer(self.scheme.weight, ch_axis=point.axis)
        if quantizer is not None:
            quantizer = quantizer.to(weight.device)
        setattr(self, slot, quantizer)

    def clear(self) -> None:
        """Forget all points."""
        for point in self.all_points():
            for role in point.roles:
                delattr(self, point.quantizer(role))
            if point.weight:
                del self._parameters[point.weight]
        self.points.clear()
        self.borrowed.clear()
        self.weight_slots.clear()
        self.weight_axes.clear()

    def _register(self, name: str, quantizer: Quantizer | None) -> None:
        setattr(self, name, quantizer)
        if quantizer is None or self.learning is None:
            return
        if self.learning.observing:
            quantizer.observing = True

    def all_points(self) -> list[Point]:
        """Return every point, in the order of their names' numbers."""
        found = [point for same in self.points.values() for point in same]
        return sorted(found, key=lambda p: int(p.name.rpartition('_')[2]))

    def _quantized(self, point: Point, at: int, operand: Tensor) -> Tensor:
        if point.roles[at] == WEIGHT:
            stored: Tensor = getattr(self, point.weight)
            weight = self.quantized_weight(point.weight)
            return (
                operand
                if weight is stored
                else _view(weight, like=operand, of=stored)
            )
        quantizer = self._modules.get(point.slots[at])
        return operand if quantizer is None else quantizer(operand)

    def _attend(
        self,
        point: Point,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Run torch's fused attention, step by step while it is quantized."""
        found = [getattr(self, point.quantizer(r)) for r in point.roles]
        active = [
            quantizer
            for quantizer in found
            if quantizer is not None
            and (quantizer.enabled or quantizer.observing)
        ]
        given = SIGNATURE.bind(*args, **kwargs)
        given.apply_defaults()
        if not active or given.arguments['enable_gqa']:
            return func(*args, **kwargs)
        return attend(*found, **given.arguments)

    def _tell(self, call: ProductCall, site: Site) -> None:
        """Refuse a place that calibration has not seen.

        In training, losses multiply too; before a calibration, all is float.
        """
        on = any(
            isinstance(child, Quantizer) and child.enabled
            for child in self.children()
        )
        if self.settled and on and not site.module.training:
            raise RuntimeError(
                f'{type(site.module).__name__}.{site.method} multiplies by '
                f'{call.name} at {site.path}, which no calibration image '
                'reached: calibrate with more images, or leave all products '
                "of this module float with qconfig.keep_float=['*.products']"
            )


def stored_weight(operand: Tensor) -> nn.Parameter | None:
    """Return the parameter that an operand is, or is a view of.

    Args:
        operand: Operand of a product.
    """
    if isinstance(operand, nn.Parameter):
        return operand
    base = operand._base if operand._is_view() else None
    if isinstance(base, nn.Parameter) and base.is_contiguous():
        return base
    return None


def stored_axis(
    operand: Tensor, weight: Tensor, axis: int | None
) -> int | None:
    """Return the axis of a stored weight that an axis of its view runs along.

    >>> import torch
    >>> weight = torch.zeros(4, 6)
    >>> stored_axis(weight.t(), weight, -1), stored_axis(weight, weight, -1)
    (0, 1)

    Args:
        operand: The weight, or a view of it.
        weight: The weight as stored.
        axis: Axis of the operand; None gives None.
    """
    if axis is None:
        return None
    if operand.shape == weight.shape and operand.stride() == weight.stride():
        return axis % operand.dim()
    size, stride = operand.shape[axis], operand.stride(axis)
    found = [
        i
        for i, (n, step) in enumerate(
            zip(weight.shape, weight.stride(), strict=True)
        )
        if step == stride and 1 < size <= n
    ]
    return found[0] if len(found) == 1 else None


def _view(weight: Tensor, *, like: Tensor, of: Tensor) -> Tensor:
    """Return the view of a quantized weight that ``like`` is of ``of``."""
    if like.shape == of.shape and like.stride() == of.stride():
        return weight
    offset = like.storage_offset() - of.storage_offset()
    return weight.contiguous().as_strided(like.shape, like.stride(), offset)
