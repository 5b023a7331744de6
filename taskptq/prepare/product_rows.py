"""Rows of the report for products that no counterpart owns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from taskptq.core import Quantizer
from taskptq.modules.product_mode import CHILD, all_products
from taskptq.modules.products import QuantProducts
from taskptq.prepare.product_owners import record_owners
from taskptq.prepare.report import SwapReport, SwapRow
from taskptq.prepare.tree import is_scripted

_POINT_OF_ROLE = {
    'weight': 'weight_bits',
    'input': 'activation_bits',
    'softmax': 'softmax_bits',
}


def add_own_products(report: SwapReport, model: nn.Module) -> None:
    """Bring a report up to date with the points of a model's products.

    Args:
        report: Changed in place, rows and decisions.
        model: Prepared model; calibration may have found further points.
    """
    report.rows = with_products(report.rows, model)
    report.decisions = replace(report.decisions, products=record_owners(model))


def with_products(rows: Sequence[SwapRow], model: nn.Module) -> list[SwapRow]:
    """Return rows that name the points of products as well.

    Those of layers whose weight such a product multiplies say so; those of
    owners that were float for want of a counterpart are replaced.

    Args:
        rows: Rows of a report, with or without the products.
        model: Prepared model.
    """
    modules = dict(model.named_modules())
    found: dict[str, SwapRow] = {}
    readers: dict[int, str] = {}
    for path, products in all_products(model):
        owner = path.rpartition('.')[0]
        if products.all_points():
            kind = type(modules[owner]).__name__
            found[path] = _row(path, kind, products)
        readers.update(
            {id(weight): path for weight in products.parameters(False)}
        )
    owners = {path.rpartition('.')[0] for path in found}
    kept = []
    for row in rows:
        known = row.name in found or row.name.endswith(f'.{CHILD}')
        if known or (row.name in owners and _is_float(row)):
            continue
        kept.append(_read_row(row, modules.get(row.name), readers))
    return [*kept, *found.values()]


def _is_float(row: SwapRow) -> bool:
    return row.status == 'float'


def _read_row(
    row: SwapRow, module: nn.Module | None, readers: dict[int, str]
) -> SwapRow:
    """Return the row of a layer, perhaps of one whose weight others read."""
    if module is None or is_scripted(module) or not _is_float(row):
        return row
    weight = module._parameters.get('weight')
    reader = readers.get(id(weight)) if weight is not None else None
    if reader is None:
        return row
    return SwapRow(
        name=row.name,
        type=row.type,
        status='quantized',
        reason=f'multiplied by {reader}',
    )


def _row(path: str, kind: str, products: QuantProducts) -> SwapRow:
    bits: dict[str, Any] = {}
    for point in products.all_points():
        for role in point.roles:
            quantizer = getattr(products, point.quantizer(role))
            if isinstance(quantizer, Quantizer):
                key = _POINT_OF_ROLE.get(role, 'attention_bits')
                num_bits = quantizer.spec.num_bits
                bits[key] = min(num_bits, bits.get(key, num_bits))
    return SwapRow(name=path, type=kind, status='quantized', **bits)
