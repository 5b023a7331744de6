"""What an export wrote and checked."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

MOST_SHOWN = 5


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
        unused: Weights and grids of layers that no output depends on, which
            the file leaves out.
        coarser: Weights with channels on coarser steps, since their bias
            would overflow -> how many channels.
        added: Grids that were added for the target, by tensor.
        replaced: Grids whose place a shared one took.
        shifted: Grids per channel that got one zero point for all.
        gates: Gates such as SiLU that run in integers -> their precision in
            dB.
        float_gates: Those that are not precise enough for that.
        padded: Layers with channels of zeros, see :mod:`.columns`.
        checks: What verification measured, by name.
    """

    path: str
    target: str
    opset: int
    num_weights: int = 0
    num_activations: int = 0
    decomposed: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    coarser: dict[str, int] = field(default_factory=dict)
    added: dict[str, str] = field(default_factory=dict)
    replaced: list[str] = field(default_factory=list)
    shifted: list[str] = field(default_factory=list)
    gates: dict[str, float] = field(default_factory=dict)
    float_gates: list[str] = field(default_factory=list)
    padded: list[str] = field(default_factory=list)
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
            lines.append(f'{len(self.added)} grids added for {self.target}')
        if self.gates or self.float_gates:
            lines.append(
                f'{len(self.gates)} gates such as SiLU in integers, '
                f'{len(self.float_gates)} in floats, which are more precise'
            )
        if self.padded:
            lines.append(
                f'{len(self.padded)} layers padded to numbers of channels '
                f'that {self.target} computes right, e.g. {self.padded[0]}'
            )
        if self.unused:
            lines.append(
                f'{len(self.unused)} weights and grids are left out, since '
                f'no output depends on them, e.g. {self.unused[0]}'
            )
        if self.coarser:
            lines.append(
                f'{sum(self.coarser.values())} channels whose weights are '
                'nearly 0 have coarser steps, for biases that fit in 32 '
                f'bits, e.g. in {next(iter(self.coarser))}'
            )
        if self.decomposed:
            lines.append(
                f'{len(self.decomposed)} quantizers in float arithmetic, '
                f'e.g. {self.decomposed[0]}'
            )
        checks = dict(self.checks)
        for name, row in checks.pop('outputs', {}).items():
            numbers = ', '.join(f'{k} {v}' for k, v in row.items())
            lines.append(f'{name}: {numbers}')
        floats = checks.pop('float_layers', [])
        lines += [f'{name}: {found}' for name, found in checks.items()]
        if floats:
            shown = ', '.join(floats[:MOST_SHOWN])
            more = ', ...' if len(floats) > MOST_SHOWN else ''
            lines.append(f'float layers: {len(floats)} ({shown}{more})')
        return '\n'.join(lines)
