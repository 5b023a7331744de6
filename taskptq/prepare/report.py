"""What a swap did: every layer's fate, as data and as a table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from taskptq.prepare.decisions import Decisions
from taskptq.prepare.products_report import (
    Product,
    ProductReport,
    percent,
)

STATUSES = ('quantized', 'partly', 'float', 'unreached')


@dataclass(frozen=True, kw_only=True)
class SwapRow:
    """What happened to one module; None bits where it has no such point.

    Args:
        name: Qualified name.
        type: Class of the float module.
        status: 'quantized' or 'float'. Once products were traced also
            'partly', if an operand of a product in it is float, and
            'unreached', if no traced batch called it.
        weight_bits: Bits of its weights.
        activation_bits: Bits of its inputs.
        attention_bits: Bits of the operands of its attention matmuls, the
            fewest of q, k and v.
        softmax_bits: Bits of its softmax outputs.
        reason: Why it is float, or an exception from the recipe.
        macs: Multiply-accumulates in it, children apart; None if they were
            not traced.
        macs_quantized: Those with both operands quantized.
    """

    name: str
    type: str
    status: str
    weight_bits: int | None = None
    activation_bits: int | None = None
    attention_bits: int | None = None
    softmax_bits: int | None = None
    reason: str = ''
    macs: int | None = None
    macs_quantized: int | None = None


@dataclass(kw_only=True)
class SwapReport:
    """Every conv, linear, attention and other weighted module, and its fate.

    Before ``add_products`` the status says what was swapped, after it what
    ran. Rows that are not 'quantized' have a reason.
    """

    rows: list[SwapRow] = field(default_factory=list)
    folded: list[str] = field(default_factory=list)
    decisions: Decisions = field(default_factory=Decisions)
    products: ProductReport | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain types."""
        return {
            'summary': self.summary(),
            'modules': [asdict(row) for row in self.rows],
            'folded_norms': list(self.folded),
            'decisions': self.decisions.to_dict(),
            'num_quantized': self.count('quantized'),
            'num_float': self.count('float'),
            'num_partly': self.count('partly'),
            'num_unreached': self.count('unreached'),
            'products': (
                None if self.products is None else self.products.to_dict()
            ),
        }

    def count(self, status: str) -> int:
        """Return how many modules have a status."""
        return sum(row.status == status for row in self.rows)

    def save(self, path: str | Path) -> None:
        """Write the report as JSON."""
        text = json.dumps(self.to_dict(), indent=1)
        Path(path).write_text(text + '\n', encoding='utf-8')

    def summary(self) -> str:
        """Return the share of the whole model, then how many modules."""
        words = {
            'quantized': 'quantized', 'partly': 'partly quantized',
            'float': 'float', 'unreached': 'not reached',
        }  # fmt: skip
        counts = ', '.join(
            f'{self.count(status)} {words[status]}'
            for status in STATUSES
            if self.count(status) or status in ('quantized', 'float')
        )
        if self.products is None:
            return f'modules: {counts}'
        return f'{self.products.summary()}; modules: {counts}'

    def add_products(
        self,
        products: ProductReport,
        *,
        left_float: Mapping[str, str] | None = None,
    ) -> None:
        """Let the rows say what ran, instead of what was swapped.

        Modules without a row that multiply float operands get one.

        Args:
            products: What was traced; takes over ``left_float`` and the
                reasons of the rows.
            left_float: Counterpart that calibration left float -> why; None
                keeps what ``products`` has.
        """
        if left_float is not None:
            products.left_float = dict(left_float)
        self.products = products
        self.rows = [_settled(row, products) for row in self.rows]
        known = {row.name: row for row in self.rows}
        for product in products.products:
            row = known.get(product.module)
            if row is None and product.both < product.total:
                row = _row_of(product)
                known[row.name] = row
                self.rows.append(_counted(row, products))
            elif row is not None and row.status == 'float' and row.reason:
                product.reason = row.reason

    def table(self) -> str:
        """Return a readable table, one line for each module.

        Where products were traced, the first line is the share of the whole
        model, and a column gives each module's share of all
        multiply-accumulates.
        """
        lines = [_HEAD, *(self._line(row) for row in self.rows)]
        if self.products is None:
            # Nothing was traced: there are no shares to show.
            lines = [(*line[:3], line[4]) for line in lines]
        widths = [
            max(len(line[i]) for line in lines)
            for i in range(len(lines[0]) - 1)
        ]
        text = [
            '  '.join(
                [
                    *(
                        cell.ljust(width)
                        for cell, width in zip(line, widths, strict=False)
                    ),
                    line[-1],
                ]
            ).rstrip()
            for line in lines
        ]
        if self.products is not None:
            text.insert(0, self.summary())
        return '\n'.join(text)

    def _line(self, row: SwapRow) -> tuple[str, ...]:
        bits = '/'.join(
            '-' if value is None else str(value)
            for value in (
                row.weight_bits,
                row.activation_bits,
                row.attention_bits,
                row.softmax_bits,
            )
        )
        share = '-'
        if row.macs and self.products is not None:
            share = percent(row.macs, self.products.total)
        status = f'{row.status} ({row.reason})' if row.reason else row.status
        return row.name or '(model)', row.type, bits, share, status


_HEAD = ('module', 'type', 'bits (w/a/attn/softmax)', 'share', 'status')
_NO_BITS: dict[str, Any] = dict.fromkeys(
    ('weight_bits', 'activation_bits', 'attention_bits', 'softmax_bits')
)


def _counted(row: SwapRow, products: ProductReport) -> SwapRow:
    own = products.of_module(row.name)
    return replace(
        row,
        macs=sum(product.total for product in own),
        macs_quantized=sum(product.both for product in own),
    )


def _settled(row: SwapRow, products: ProductReport) -> SwapRow:
    """Return a row with the status of what ran."""
    row = _counted(row, products)
    if row.status == 'float':
        return row
    if row.name in products.left_float:
        reason = products.left_float[row.name]
        return replace(row, status='float', reason=reason, **_NO_BITS)
    if row.name in products.unreached:
        reader = products.read_by.get(row.name)
        if reader is not None:
            return replace(
                row,
                status='partly',
                reason=f'{reader or "the model"} reads its weight past its '
                'forward: the input is float',
            )
        return replace(
            row,
            status='unreached',
            reason=f'none of the {products.num_batches} traced batches '
            'called it',
        )
    own = products.of_module(row.name)
    reasons = list(dict.fromkeys(p.reason for p in own if p.reason))
    if not reasons:
        return row
    some = any(product.both or product.one for product in own)
    return replace(
        row,
        status='partly' if some else 'float',
        reason='; '.join([*([row.reason] if row.reason else []), *reasons]),
    )


def _row_of(product: Product) -> SwapRow:
    """Return the row of a module that multiplies without weights."""
    some = product.both or product.one
    return SwapRow(
        name=product.module,
        type=product.type,
        status='partly' if some else 'float',
        reason=product.reason,
    )
