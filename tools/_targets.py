"""Targets of a table: what was promised against what was measured.

A target of a ``*.table.yml`` names ``method`` (one, or several of which the
best counts) and ``bits``, and at most one of

- ``min_share_of_float``: lowest share of the float model's value,
- ``above``: methods whose mean it must exceed by more than the seed spread
  (the larger of the two spreads, largest value minus smallest),
- ``against``: the same differences, reported only.

With none of them the share of float is reported only. Differences count only
at discriminating bits: where MinMax keeps at most 90 % of float.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from _results import Results, Summary, float_summary, summary_of

KEYS = ('name', 'method', 'bits', 'min_share_of_float', 'above', 'against')
PLAIN = 'minmax'
PLAIN_SHARE = 0.9
# Sums of decimals miss a bound that they meet exactly by less than this.
ROUNDING = 1e-9


def evaluate_targets(targets: Sequence[Mapping[str, Any]],
                     results: Results) -> list[dict[str, Any]]:
    """Compare targets with results.

    Args:
        targets: See the module.
        results: Content of a results file.

    Returns:
        For each target ``status`` (``pass``, ``fail``, ``one seed`` where a
        difference has no spread to exceed, ``reported``, ``missing``),
        ``measured``, ``required`` and ``short_by``; shares and differences
        are fractions and differences of the table's metric.

    Raises:
        ValueError: If a target has an unknown key.
    """
    return [_evaluate(target, results) for target in targets]


def _evaluate(target: Mapping[str, Any], results: Results) -> dict[str, Any]:
    unknown = [key for key in target if key not in KEYS]
    if unknown:
        raise ValueError(
            f'target {target.get("name")!r} has unknown key {unknown[0]!r}; '
            f'known are {", ".join(KEYS)}')
    reference = float_summary(results)
    method, own = _best(_names(target['method']), target['bits'], results)
    record: dict[str, Any] = {
        'name': target['name'], 'method': method, 'bits': target['bits'],
        'status': 'missing'
    }
    if own is None or reference is None:
        return record
    record |= {'value': own.mean, 'spread': own.spread,
               'num_seeds': own.num_seeds}
    if 'above' in target or 'against' in target:
        others = _names(target.get('above', target.get('against')))
        record |= _differences(own, others, target['bits'], results)
        if 'against' in target and record['status'] != 'missing':
            record['status'] = 'reported'
        return record
    share = own.mean / reference.mean if reference.mean else 0.0
    return record | _share(share, target.get('min_share_of_float'))


def _names(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _best(methods: Sequence[str], bits: str,
          results: Results) -> tuple[str, Summary | None]:
    """Return the method with the highest mean, and its summary."""
    found = [(name, summary) for name in methods
             if (summary := summary_of(results, method=name, bits=bits))]
    if not found:
        return '|'.join(methods), None
    return max(found, key=lambda item: item[1].mean)


def _share(share: float, required: float | None) -> dict[str, Any]:
    if required is None:
        return {'measured': share, 'status': 'reported'}
    met = share >= required - ROUNDING
    return {
        'measured': share,
        'required': required,
        'status': 'pass' if met else 'fail',
        'short_by': 0.0 if met else required - share,
    }


def _differences(own: Summary, others: Sequence[str], bits: str,
                 results: Results) -> dict[str, Any]:
    """Compare means; the smallest margin over the spread decides."""
    margins: dict[str, float] = {}
    differences: dict[str, dict[str, float]] = {}
    num_seeds = own.num_seeds
    for name in others:
        other = summary_of(results, method=name, bits=bits)
        if other is None:
            return {'status': 'missing', 'lacks': name}
        num_seeds = min(num_seeds, other.num_seeds)
        spread = max(own.spread, other.spread)
        difference = own.mean - other.mean
        differences[name] = {'difference': difference, 'spread': spread}
        margins[name] = difference - spread
    worst = min(margins, key=lambda name: margins[name])
    ahead = margins[worst] > ROUNDING
    return {
        'differences': differences,
        'measured': differences[worst]['difference'],
        'required': differences[worst]['spread'],
        'num_seeds': num_seeds,
        'discriminating': _discriminating(bits, results),
        # A single seed has no spread to be compared with.
        'status': ('fail' if not ahead else
                   'pass' if num_seeds > 1 else 'one seed'),
        'short_by': max(0.0, -margins[worst]),
    }


def _discriminating(bits: str, results: Results) -> bool | None:
    plain = summary_of(results, method=PLAIN, bits=bits)
    reference = float_summary(results)
    if plain is None or reference is None:
        return None
    return plain.mean <= PLAIN_SHARE * reference.mean + ROUNDING


def describe(record: Mapping[str, Any]) -> str:
    """Return a target's outcome as one line.

    Args:
        record: One of :func:`evaluate_targets`.
    """
    head = f'{record["status"]:8} {record["name"]}: '
    if record['status'] == 'missing':
        lacking = record.get('lacks', record['method'])
        return f'{head}{lacking} {record["bits"]} is not measured yet'
    if 'differences' in record:
        return head + _describe_differences(record)
    text = f'{record["method"]} keeps {record["measured"]:.1%} of float'
    if 'required' in record:
        text += f', target {record["required"]:.1%}'
    if record['status'] == 'fail':
        text += f', short by {record["short_by"]:.1%}'
    return head + text


def _describe_differences(record: Mapping[str, Any]) -> str:
    parts = [f'{values["difference"]:+.3f} to {name} '
             f'(spread {values["spread"]:.3f})'
             for name, values in record['differences'].items()]
    text = f'{record["method"]} ' + ', '.join(parts)
    if record['num_seeds'] == 1:
        text += ', one seed'
    if record['discriminating'] is False:
        text += ', bits do not discriminate'
    if record['status'] == 'fail':
        text += f', short by {record["short_by"]:.3f}'
    return text
