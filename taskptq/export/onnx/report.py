"""What an export wrote and checked."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(kw_only=True)
class ExportReport:
    """Report of an export.

    Args:
        path: The file.
        target: Runtime that it is for.
        opset: Version of its operators.
        num_weights: Weights stored as integers.
        num_activations: Grids of activations that the network brought.
        decomposed: Quantizers written as float arithmetic.
        added: Grids that were added for the target, by tensor.
        checks: What verification measured, by name.
    """

    path: str
    target: str
    opset: int
    num_weights: int = 0
    num_activations: int = 0
    decomposed: list[str] = field(default_factory=list)
    added: dict[str, str] = field(default_factory=dict)
    checks: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types."""
        return asdict(self)

    def text(self) -> str:
        """Return the report for a reader."""
        lines = [
            f'{self.path}: {self.num_weights} integer weights, '
            f'{self.num_activations} activation grids for {self.target}, '
            f'opset {self.opset}'
        ]
        if self.added:
            lines.append(f'{len(self.added)} grids added for the target')
        if self.decomposed:
            lines.append(
                f'{len(self.decomposed)} quantizers in float arithmetic, '
                f'e.g. {self.decomposed[0]}'
            )
        lines += [f'{name}: {found}' for name, found in self.checks.items()]
        return '\n'.join(lines)
