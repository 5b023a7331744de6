"""Report of a reconstruction."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from taskptq.reconstruction.rounding.learned import UnitResult, stored_names


@dataclass(kw_only=True)
class ReconstructionReport:
    """Report of a reconstruction.

    Args:
        units: One result per unit, in execution order.
        num_forwards: Passes of the whole model over the calibration set: one
            for the float inputs, one for each break, and those few batches in
            which the called modules are looked for, at most one pass more.
        num_breaks: Units whose inputs needed a pass of the quantized model.
        resumed_units: Units taken from a saved state.
        resumed_seconds: Time that training these took.
        uncalled: Layers that no traced batch calls; rounded to nearest.
        spilled_bytes: Bytes of the activation cache written to disk.
        settled: Share of all roundings settled before freezing.
        flipped: Share of all roundings that the last phase flipped.
        loss: Report of a network-wise loss (its ``report()``), plain types.
        input_ranges: Factors of the steps of activations that
            ``input_ranges`` changed, by quantizer.
        seconds: Wall time, without ``resumed_seconds``.
    """

    units: list[UnitResult] = field(default_factory=list)
    num_forwards: float = 0.0
    num_breaks: int = 0
    resumed_units: int = 0
    resumed_seconds: float = 0.0
    uncalled: list[str] = field(default_factory=list)
    spilled_bytes: int = 0
    settled: float | None = None
    flipped: float | None = None
    loss: dict[str, Any] = field(default_factory=dict)
    input_ranges: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def take_over(self, result: UnitResult) -> None:
        """Count a unit from a saved state."""
        self.resumed_units += 1
        self.resumed_seconds += result.seconds

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, by their stored names."""
        units = [unit.to_dict() for unit in self.units]
        return {**stored_names(vars(self)), 'units': units}
