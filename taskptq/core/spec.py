"""The layout of a quantization grid: bits, symmetry, granularity."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from taskptq.core.settings import Flag, Whole, check_fields, setting

MIN_BITS = 2
# Of grids of a few levels (core.levels).
LEAST_BITS = 1
# Of activations; weights are stored in bytes at most.
MAX_BITS = 16
MAX_WEIGHT_BITS = 8
# No layer reads tensors of more than 8 dimensions.
MAX_AXIS = 7


@dataclass(frozen=True, kw_only=True)
class QuantSpec:
    """An integer grid, before any scale is known.

    Args:
        num_bits: Bits of one code, 1 to 16; uniform grids have at least 2,
            weights 8 at most (see ``QConfig``).
        symmetric: Fix the zero point at 0.
        signed: Codes are [-2^(b-1), 2^(b-1) - 1] if True, [0, 2^b - 1] if
            False; None picks unsigned if no observed value is negative.
        ch_axis: Axis with one scale per index; None is one per tensor.

    Raises:
        SettingError: If ``num_bits`` is outside 1 to 16, ``ch_axis`` is
            negative or a value has the wrong type.
    """

    num_bits: int = setting(8, Whole(low=LEAST_BITS, high=MAX_BITS))
    symmetric: bool = setting(False, Flag())
    signed: bool | None = setting(None, Flag(optional=True))
    ch_axis: int | None = setting(
        None, Whole(low=0, high=MAX_AXIS, optional=True)
    )

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def num_levels(self) -> int:
        """Number of codes, 2^num_bits."""
        return int(2**self.num_bits)

    def bounds(self, *, signed: bool) -> tuple[int, int]:
        """Return (quant_min, quant_max) of the signed or unsigned grid.

        >>> QuantSpec(num_bits=4).bounds(signed=True)
        (-8, 7)
        >>> QuantSpec(num_bits=4).bounds(signed=False)
        (0, 15)
        """
        if signed:
            half = self.num_levels // 2
            return -half, half - 1
        return 0, self.num_levels - 1

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain types, for recipes and reports."""
        return asdict(self)
