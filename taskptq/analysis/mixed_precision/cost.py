"""What a choice of bits costs, in units that a user can set a budget in.

=============  ========================================================
budget         what is counted
=============  ========================================================
``bops``       multiply-accumulates x bits of one operand x bits of the
               other, as a share of the same products at 8 x 8 bits;
               float counts as 32 bits
``bytes``      bytes of the packed codes of all quantized weights; up to 1
               as a share of what they take at 8 bits
``macs_above`` share of all multiply-accumulates of which either operand
               has more bits than the recipe gave it
``latency``    measured milliseconds of all layers, see
               :class:`LatencyTable`; up to 1 as a share of the float
               model's
=============  ========================================================

The first and last layers (``edge_bits``) are outside: of them only what is
added to the bits of the recipe counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from taskptq.analysis.mixed_precision.operands import Product
from taskptq.analysis.mixed_precision.units import (
    FLOAT,
    Bits,
    Key,
    Unit,
    float_pairs,
    width,
)

__all__ = [
    'Choice',
    'Cost',
    'Joint',
    'LatencyTable',
    'Problem',
    'build_problem',
    'cost_of',
    'named_cost',
    'operand_bits',
    'price_of',
    'uniform_choice',
]

REFERENCE_BITS = 8
Choice = Mapping[Key, Bits]


@dataclass(frozen=True, kw_only=True)
class Joint:
    """A product as the solver sees it: two units and what they multiply.

    Args:
        first: Key of the unit of the left operand; None if it is float.
        second: Key of the unit of the right operand.
        macs: Multiply-accumulates.
    """

    first: Key | None
    second: Key | None
    macs: int


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Everything that a choice is made from.

    Args:
        units: What can be chosen, by key.
        joints: Products, by pair of units.
        edges: Layers of which only added bits count.
    """

    units: Mapping[Key, Unit]
    joints: Sequence[Joint]
    edges: frozenset[str] = frozenset()

    @cached_property
    def macs(self) -> int:
        """All multiply-accumulates."""
        return sum(joint.macs for joint in self.joints)

    @cached_property
    def inner_macs(self) -> int:
        """Multiply-accumulates of all but the edges, at least 1."""
        inside = (j.macs for j in self.joints if not self.at_edge(j))
        return max(sum(inside), 1)

    @cached_property
    def inner_elements(self) -> int:
        """Weights of all layers but the edges, at least 1."""
        units = self.units.values()
        inside = (u.elements for u in units if u.layer not in self.edges)
        return max(sum(inside), 1)

    @cached_property
    def pairs(self) -> Sequence[tuple[Key, Key]]:
        """Units that are float together or not at all."""
        return float_pairs(self.units.values())

    @cached_property
    def partners(self) -> Mapping[Key, Key]:
        """The other unit of each pair."""
        return dict([*self.pairs, *((b, a) for a, b in self.pairs)])

    @cached_property
    def readers(self) -> Mapping[Key, Sequence[Joint]]:
        """Products that read each unit."""
        return {
            key: [j for j in self.joints if key in (j.first, j.second)]
            for key in self.units
        }

    def at_edge(self, joint: Joint) -> bool:
        """Whether a product is that of a first or last layer."""
        keys = (joint.first, joint.second)
        return any(key is not None and key[0] in self.edges for key in keys)

    def named_width(self, key: Key | None) -> int:
        """Return the bits that the recipe gave an operand."""
        return width(FLOAT if key is None else self.units[key].num_bits)

    def named(self) -> dict[Key, Bits]:
        """Return the choice that the recipe made."""
        return {key: unit.num_bits for key, unit in self.units.items()}

    def loss(self, choice: Choice) -> float:
        """Return the estimated loss of a choice."""
        return sum(
            unit.losses[choice[key]] for key, unit in self.units.items()
        )


class Cost(Protocol):
    """What one budget counts; implement it for a cost of your own.

    Attributes:
        name: Name of the budget.
        unit: Unit of its figures.
    """

    name: str
    unit: str

    def of_product(
        self, problem: Problem, joint: Joint, first: Bits, second: Bits
    ) -> float:
        """Return the cost of a product whose operands have these bits."""
        ...

    def of_unit(self, problem: Problem, unit: Unit, bits: Bits) -> float:
        """Return the cost of a tensor at these bits, read or not."""
        ...


class BitOperations:
    """Multiply-accumulates x bits x bits, relative to 8 x 8 bits."""

    name = 'bops'
    unit = 'of 8 x 8 bits'

    def of_product(
        self, problem: Problem, joint: Joint, first: Bits, second: Bits
    ) -> float:
        """Return the share of one product."""
        added = width(first) * width(second)
        if problem.at_edge(joint):
            added -= problem.named_width(joint.first) * problem.named_width(
                joint.second
            )
        return added * joint.macs / (REFERENCE_BITS**2 * problem.inner_macs)

    def of_unit(self, problem: Problem, unit: Unit, bits: Bits) -> float:
        """Return 0: only products count."""
        return 0.0


class WeightBytes:
    """Bytes of the packed weights.

    Args:
        relative: Count shares of what they take at 8 bits.
    """

    name = 'bytes'

    def __init__(self, *, relative: bool = False) -> None:
        self.relative = relative
        self.unit = 'of 8 bits' if relative else 'bytes'

    def of_product(
        self, problem: Problem, joint: Joint, first: Bits, second: Bits
    ) -> float:
        """Return 0: only weights count."""
        return 0.0

    def of_unit(self, problem: Problem, unit: Unit, bits: Bits) -> float:
        """Return the bytes of one weight; at an edge what is added."""
        if not unit.elements:
            return 0.0
        added = width(bits)
        if unit.layer in problem.edges:
            added -= width(unit.num_bits)
        if not self.relative:
            return added * unit.elements / 8
        return (
            added * unit.elements / (REFERENCE_BITS * problem.inner_elements)
        )


class MacsAbove:
    """Share of multiply-accumulates with an operand above its named bits."""

    name = 'macs_above'
    unit = 'of multiply-accumulates'

    def of_product(
        self, problem: Problem, joint: Joint, first: Bits, second: Bits
    ) -> float:
        """Return the share of one product, or 0."""
        above = any(
            key is not None and width(bits) > problem.units[key].num_bits
            for key, bits in ((joint.first, first), (joint.second, second))
        )
        return joint.macs / problem.macs if above else 0.0

    def of_unit(self, problem: Problem, unit: Unit, bits: Bits) -> float:
        """Return 0: only products count."""
        return 0.0


class LatencyTable:
    """Measured times of layers, from a run of the runtime that is meant.

    A runtime without an integer kernel for a pair of bits runs float and
    converts on both sides: measure that, and enter it as what it takes.

    Args:
        milliseconds: Layer -> bits of both operands, as ``'8x8'`` (input x
            weight) or ``'floatxfloat'`` -> time of the layer for one image.
            Pairs without a time of their own take that of ``'8x8'`` up to 8
            bits, and that of ``'floatxfloat'`` above.
        float_ms: Time of the float model; budgets are then shares of it.
    """

    name = 'latency'

    def __init__(
        self,
        milliseconds: Mapping[str, Mapping[str, float]],
        *,
        float_ms: float | None = None,
    ) -> None:
        self.milliseconds = milliseconds
        self.unit = 'ms' if float_ms is None else 'of float'
        self._divisor = float_ms or 1.0

    def of_product(
        self, problem: Problem, joint: Joint, first: Bits, second: Bits
    ) -> float:
        """Return the measured time; 0 for a layer without times.

        Raises:
            ValueError: If the layer's times lack these bits.
        """
        # Several layers may read one input, but a weight has one layer.
        key = joint.second or joint.first
        times = {} if key is None else self.milliseconds.get(key[0], {})
        if not times:
            return 0.0
        pair = f'{first}x{second}'
        is_integer = max(width(first), width(second)) <= REFERENCE_BITS
        like = '8x8' if is_integer else f'{FLOAT}x{FLOAT}'
        found = times.get(pair, times.get(like))
        if found is None:
            assert key is not None
            raise ValueError(
                f'the latency table has no {pair!r} for {key[0]!r} (it has '
                f'{", ".join(times)}): measure it, or leave these bits out '
                'of the candidates'
            )
        return found / self._divisor

    def of_unit(self, problem: Problem, unit: Unit, bits: Bits) -> float:
        """Return 0: times belong to products."""
        return 0.0


def named_cost(
    name: str, *, limit: float, table: Mapping[str, Any] | None = None
) -> Cost:
    """Return the cost behind the key of a budget.

    Args:
        name: ``bops``, ``bytes``, ``macs_above`` or ``latency``.
        limit: The budget: bytes and latency are shares up to 1.
        table: Measured times, see ``MixedPrecisionConfig``.
    """
    if name == 'bytes':
        return WeightBytes(relative=limit <= 1)
    if name == 'latency':
        assert table is not None
        whole = float(table['float_ms']) if limit <= 1 else None
        return LatencyTable(table['layers'], float_ms=whole)
    return BitOperations() if name == 'bops' else MacsAbove()


def build_problem(
    units: Sequence[Unit],
    products: Sequence[Product],
    *,
    edges: frozenset[str] = frozenset(),
) -> Problem:
    """Put units and products together.

    Args:
        units: From ``group_units``.
        products: From ``trace_operands``.
        edges: First and last layers.
    """
    owner = {name: unit.key for unit in units for name in unit.names}

    def key_of(names: Sequence[str]) -> Key | None:
        return next((owner[name] for name in names if name in owner), None)

    macs: dict[tuple[Key | None, Key | None], int] = {}
    for product in products:
        pair = key_of(product.first), key_of(product.second)
        macs[pair] = macs.get(pair, 0) + product.macs
    return Problem(
        units={unit.key: unit for unit in units},
        joints=[
            Joint(first=first, second=second, macs=count)
            for (first, second), count in macs.items()
        ],
        edges=edges,
    )


def cost_of(problem: Problem, cost: Cost, choice: Choice) -> float:
    """Return what a choice costs."""
    of_units = sum(
        cost.of_unit(problem, unit, choice[key])
        for key, unit in problem.units.items()
    )
    return of_units + sum(
        cost.of_product(problem, joint, *operand_bits(joint, choice))
        for joint in problem.joints
    )


def operand_bits(joint: Joint, choice: Choice) -> tuple[Bits, Bits]:
    """Return the bits of both operands of a product."""
    return (
        FLOAT if joint.first is None else choice[joint.first],
        FLOAT if joint.second is None else choice[joint.second],
    )


def price_of(
    problem: Problem, cost: Cost, choice: Choice, *, key: Key, bits: Bits
) -> float:
    """Return what it costs to give one unit other bits."""
    unit = problem.units[key]
    changed = {**choice, key: bits}
    price = cost.of_unit(problem, unit, bits)
    price -= cost.of_unit(problem, unit, choice[key])
    for joint in problem.readers[key]:
        price += cost.of_product(problem, joint, *operand_bits(joint, changed))
        price -= cost.of_product(problem, joint, *operand_bits(joint, choice))
    return price


def uniform_choice(problem: Problem, bits: Bits) -> dict[Key, Bits]:
    """Return the same bits for all units that can have them.

    Others keep those of the recipe.
    """
    return {
        key: bits if bits in unit.losses else unit.num_bits
        for key, unit in problem.units.items()
    }
