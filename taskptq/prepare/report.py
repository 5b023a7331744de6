"""What a swap did: every layer's fate, as data and as a table."""
from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class SwapRow:
    """What happened to one module; None bits where it has no such point.

    Args:
        name: Qualified name.
        type: Class of the float module.
        status: 'quantized' or 'float'.
        weight_bits: Bits of its weights.
        activation_bits: Bits of its inputs.
        attention_bits: Bits of the operands of its attention matmuls, the
            fewest of q, k and v.
        softmax_bits: Bits of its softmax outputs.
        reason: Why it is float, or an exception from the recipe.
    """

    name: str
    type: str
    status: str
    weight_bits: int | None = None
    activation_bits: int | None = None
    attention_bits: int | None = None
    softmax_bits: int | None = None
    reason: str = ''


@dataclass(kw_only=True)
class SwapReport:
    """Every conv, linear, attention and other weighted module, and its fate.

    ``status`` is 'quantized' or 'float'; a float row has a reason.
    """

    rows: list[SwapRow] = field(default_factory=list)
    folded: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types."""
        return {
            'modules': [asdict(row) for row in self.rows],
            'folded_norms': list(self.folded),
            'num_quantized': self.count('quantized'),
            'num_float': self.count('float'),
        }

    def count(self, status: str) -> int:
        """Return how many modules have a status."""
        return sum(row.status == status for row in self.rows)

    def save(self, path: str | Path) -> None:
        """Write the report as JSON."""
        text = json.dumps(self.to_dict(), indent=1)
        Path(path).write_text(text + '\n', encoding='utf-8')

    def table(self) -> str:
        """Return a readable table, one line for each module."""
        head = ('module', 'type', 'bits (w/a/attn/softmax)', 'status')
        lines = [head]
        for row in self.rows:
            bits = '/'.join(
                '-' if value is None else str(value)
                for value in (
                    row.weight_bits,
                    row.activation_bits,
                    row.attention_bits,
                    row.softmax_bits,
                )
            )
            status = f'{row.status} ({row.reason})' if row.reason else (
                row.status
            )
            lines.append((row.name, row.type, bits, status))
        widths = [max(len(line[i]) for line in lines) for i in range(3)]
        return '\n'.join(
            '  '.join(
                [*(line[i].ljust(widths[i]) for i in range(3)), line[3]]
            ).rstrip()
            for line in lines
        )
