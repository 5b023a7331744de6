"""Swap float modules for their counterparts: check all, then swap all."""
from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from taskptq.modules.base import QuantModule, Scheme
from taskptq.modules.hosts import counterpart_class
from taskptq.prepare.mapping import (
    KEPT_FLOAT,
    OUTPUT_LAYERS,
    OUTPUT_SEQUENCES,
    dotted,
    lookup,
)
from taskptq.prepare.patterns import check_all_used, matches
from taskptq.prepare.qconfig import QConfig


@dataclass(frozen=True, kw_only=True)
class SwapRow:
    """What happened to one module."""

    name: str
    type: str
    status: str
    weight_bits: int | None = None
    activation_bits: int | None = None
    attention_bits: int | None = None
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
        head = ('module', 'type', 'bits (w/a/attn)', 'status')
        lines = [head]
        for row in self.rows:
            bits = '/'.join(
                '-' if value is None else str(value)
                for value in (
                    row.weight_bits,
                    row.activation_bits,
                    row.attention_bits,
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


def swap(model: nn.Module, qconfig: QConfig) -> SwapReport:
    """Replace every mapped module by its counterpart, in place.

    Nothing is changed unless every check passes.

    Args:
        model: Float model in eval mode.
        qconfig: Recipe.

    Returns:
        The fate of every module that carries weights or a matmul.

    Raises:
        ValueError: If a pattern matches nothing, the model has no layer that
            could be quantized, or it is quantized already.
    """
    candidates = _candidates(model)
    names = [name for name, _ in candidates]
    for argument, patterns in qconfig.patterns().items():
        check_all_used(patterns, names, argument=argument)
    edges = edge_layers(candidates, qconfig)
    made: dict[int, QuantModule] = {}
    report = SwapReport()
    for name, module in candidates:
        scheme = qconfig.scheme(name, edge=name in edges)
        reason = _reason_to_keep(name, module, qconfig, scheme)
        if not reason:
            implementation = lookup(module)
            assert implementation is not None
            cls = counterpart_class(implementation, type(module))
            made[id(module)] = cls.from_float(module, scheme=scheme)
        report.rows.append(
            _row(name, module, scheme, reason, edge=name in edges)
        )
    if not made:
        raise ValueError(
            f'{type(model).__name__} has no layer to quantize: every module '
            'is unmapped or kept float by qconfig.keep_float'
        )
    _replace(model, made)
    return report


def edge_layers(
    candidates: list[tuple[str, nn.Module]], qconfig: QConfig
) -> set[str]:
    """Names of the first conv, the heads' last layers, and the user's."""
    names = [name for name, _ in candidates]
    edges = {name for name, m in candidates if _is_first(m)}
    edges = {min(edges, key=names.index)} if edges else set()
    for name in names:
        patterns = (*OUTPUT_LAYERS, *qconfig.edges)
        if any(matches(name, pattern) for pattern in patterns):
            edges.add(name)
    return edges | _last_of_sequences(names)


def _is_first(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d)


def _last_of_sequences(names: list[str]) -> set[str]:
    """Highest-numbered layer of each listed regression network."""
    last: dict[str, tuple[int, str]] = {}
    for name in names:
        parent, _, index = name.rpartition('.')
        if index.isdigit() and any(
            matches(parent, pattern) for pattern in OUTPUT_SEQUENCES
        ):
            last[parent] = max(
                last.get(parent, (-1, '')), (int(index), name)
            )
    return {name for _, name in last.values()}


def _candidates(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Modules that carry a matrix weight of their own, or attention."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, QuantModule):
            raise ValueError(
                f'{name or type(model).__name__} is quantized already: '
                'prepare a fresh float model'
            )
        if lookup(module) is not None or _carries_matmul(module):
            found.append((name, module))
    return found


def _carries_matmul(module: nn.Module) -> bool:
    own = module._parameters.values()
    if any(p is not None and p.dim() >= 2 for p in own):
        return True
    is_attention = any(
        word in type(module).__name__ for word in ('Attention', 'MSA')
    )
    # A wrapper's work is listed at the attention inside it.
    return is_attention and not any(
        lookup(child) is not None and 'Attention' in type(child).__name__
        for child in module.modules()
        if child is not module
    )


def _reason_to_keep(
    name: str, module: nn.Module, qconfig: QConfig, scheme: Scheme
) -> str:
    for pattern in qconfig.keep_float:
        if matches(name, pattern):
            return f'qconfig.keep_float {pattern!r}'
    if lookup(module) is None:
        kept = KEPT_FLOAT.get(dotted(type(module)))
        return kept or f'no counterpart of {dotted(type(module))}'
    if all(
        value is None
        for value in (scheme.weight, scheme.activation, scheme.attention)
    ):
        return 'every point is False in qconfig'
    return ''


def _row(
    name: str,
    module: nn.Module,
    scheme: Scheme,
    reason: str,
    *,
    edge: bool,
) -> SwapRow:
    kind = type(module).__name__
    if reason:
        return SwapRow(name=name, type=kind, status='float', reason=reason)
    is_attention = 'Attention' in kind or 'MSA' in kind
    bits = {
        point: None if config is None else config.spec.num_bits
        for point, config in vars(scheme).items()
    }
    return SwapRow(
        name=name,
        type=kind,
        status='quantized',
        weight_bits=bits['weight'],
        activation_bits=bits['activation'],
        attention_bits=bits['attention'] if is_attention else None,
        reason='edge layer' if edge else '',
    )


def _replace(model: nn.Module, made: dict[int, QuantModule]) -> None:
    """Put the counterparts in, at every name a module has."""
    for parent, child_name, child in list(_children(model, made)):
        parent._modules[child_name] = made[id(child)]
    for quant in made.values():
        # An outer counterpart took over its children before they were swapped
        for child_name, child in quant._modules.items():
            if child is not None and id(child) in made:
                quant._modules[child_name] = made[id(child)]


def _children(
    model: nn.Module, made: dict[int, QuantModule]
) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is not None and id(child) in made:
                yield parent, name, child
