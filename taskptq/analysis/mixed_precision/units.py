"""What is chosen: the bits of one point of one layer."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from taskptq.analysis.sensitivity.record import PointSensitivity
from taskptq.core.spec import MAX_BITS, MAX_WEIGHT_BITS

__all__ = [
    'FLOAT',
    'Bits',
    'Key',
    'Unit',
    'float_pairs',
    'group_units',
    'width',
]

FLOAT = 'float'
FLOAT_WIDTH = 32
Bits = int | str
# Layer and point.
Key = tuple[str, str]


def width(bits: Bits) -> int:
    """Return the bits that a value takes; 32 if it is float.

    >>> width(8), width('float')
    (8, 32)
    """
    return FLOAT_WIDTH if isinstance(bits, str) else bits


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One point of one layer, whose quantizers get the same bits.

    Args:
        layer: Qualified name of the counterpart.
        point: 'weight', 'activation', 'query', 'key', 'value' or 'softmax'.
        names: Qualified names of its quantizers.
        num_bits: Bits that the recipe gave it.
        losses: Estimated output loss by candidate; the candidates are the
            keys, and ``num_bits`` is one of them.
        elements: Values of the weights; 0 for other points.
    """

    layer: str
    point: str
    names: tuple[str, ...]
    num_bits: int
    losses: Mapping[Bits, float]
    elements: int = 0

    @property
    def key(self) -> Key:
        """Layer and point."""
        return self.layer, self.point

    @property
    def candidates(self) -> tuple[Bits, ...]:
        """Candidates, the fewest bits first."""
        return tuple(sorted(self.losses, key=width))


def group_units(
    points: Iterable[PointSensitivity],
    *,
    candidates: Sequence[Bits],
    only: Sequence[str],
    edges: Collection[str],
    fixed: Collection[str] = (),
    weight_share: float = 1.0,
    rounded: Collection[str] = (),
) -> list[Unit]:
    """Group the quantizers of a model into what can be chosen.

    The bits of the recipe are always among the candidates. Weights have 8
    bits at most. Float are whole layers or nothing: convolutions and linears
    with a weight and an input of their own, see :func:`float_pairs`.

    Args:
        points: Sensitivities of all quantizers.
        candidates: Bits to choose from, perhaps 'float'.
        only: Points that may change; others keep their bits.
        edges: First and last layers, which never get fewer bits.
        fixed: Layers whose points keep their bits.
        weight_share: Part of the losses of weights that will remain after a
            better rounding.
        rounded: Quantizers of weights whose losses at their own bits are
            those of that rounding already.
    """
    groups: dict[Key, list[PointSensitivity]] = {}
    for found in points:
        groups.setdefault((found.layer, found.point), []).append(found)
    whole = _whole_layers(groups, only)
    units = []
    for (layer, point), found_here in groups.items():
        own = found_here[0].num_bits
        frozen = point not in only or layer in fixed
        allowed = _allowed(
            found_here,
            candidates=() if frozen else candidates,
            least=own if layer in edges else 0,
            may_be_float=layer in whole and not frozen,
        )
        share = weight_share if point == 'weight' else 1.0
        known = {one.name for one in found_here} <= set(rounded)
        units.append(
            Unit(
                layer=layer,
                point=point,
                names=tuple(one.name for one in found_here),
                num_bits=own,
                losses={
                    bits: (1.0 if known and bits == own else share)
                    * sum(one.loss_at(bits) for one in found_here)
                    for bits in allowed
                },
                elements=(
                    sum(one.elements for one in found_here)
                    if point == 'weight'
                    else 0
                ),
            )
        )
    return units


def float_pairs(units: Iterable[Unit]) -> list[tuple[Key, Key]]:
    """Return the weight and the input of each layer that may be float.

    One is float only together with the other: a product of a float and a
    quantized operand runs float anyway.
    """
    layers: dict[str, list[Key]] = {}
    for unit in units:
        if FLOAT in unit.losses:
            layers.setdefault(unit.layer, []).append(unit.key)
    return [(keys[0], keys[1]) for keys in layers.values()]


def _whole_layers(
    groups: Mapping[Key, Sequence[PointSensitivity]], only: Collection[str]
) -> set[str]:
    """Return the layers that have one weight, one input and nothing else."""
    points: dict[str, list[str]] = {}
    for (layer, point), found in groups.items():
        points.setdefault(layer, []).extend([point] * len(found))
    return {
        layer
        for layer, own in points.items()
        if sorted(own) == ['activation', 'weight'] and set(own) <= set(only)
    }


def _allowed(
    found: Sequence[PointSensitivity],
    *,
    candidates: Sequence[Bits],
    least: int,
    may_be_float: bool,
) -> list[Bits]:
    """Return the candidates of one unit, with the bits that it has."""
    most = MAX_WEIGHT_BITS if found[0].point == 'weight' else MAX_BITS
    allowed: list[Bits] = [
        bits
        for bits in candidates
        if (
            may_be_float
            if isinstance(bits, str)
            else least <= bits <= most
            and all(str(bits) in one.losses for one in found)
        )
    ]
    own = found[0].num_bits
    return allowed if own in allowed else [own, *allowed]
