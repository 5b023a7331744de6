"""Compare the targets of a table with its results.

A target of a ``*.table.yml`` has a ``method`` (or several, of which the best
counts; ``float`` is the float model), ``bits``, and at most one of

- ``min_value``: lowest value,
- ``min_share_of_float``: lowest share of the float model's value,
- ``max_drop_from_float``: largest allowed drop from the float model's value,
- ``above``: methods whose mean it must exceed by more than the seed spread
  (the larger of the two spreads, largest value minus smallest),
- ``against``: the same differences, only reported,
- ``not_below``: methods whose mean it must not miss by more than the spread,
- ``max_ratio_to``: method -> highest ratio to its mean,
- ``min_gain_over``: method -> smallest difference to its mean; of several
  methods, here and above, the one with the least margin decides.

With none of them, the share of float is only reported. ``metric`` is the field
or metric that counts instead of a row's value, ``lower_is_better: true`` if
lower is better. Differences count only at discriminating bits, where ``plain``
(MinMax) keeps at most 90 % of float.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from taskptq.bench.results import Results, Summary, float_summary, summary_of

FLOAT = 'float'
FLOAT_BITS = '32'
DIFFERENCES = ('above', 'against', 'not_below')
KINDS = (
    'min_value',
    'min_share_of_float',
    'max_drop_from_float',
    *DIFFERENCES,
    'max_ratio_to',
    'min_gain_over',
)
KEYS = ('name', 'method', 'bits', 'metric', 'lower_is_better', 'plain', *KINDS)
PLAIN = 'minmax'
PLAIN_SHARE = 0.9
# Rounding error of decimal sums that exactly meet a bound.
ROUNDING = 1e-9
# Replaces a mean of zero as divisor.
TINY = 1e-12
# Method -> its results, None if not measured
Lookup = Callable[[str], 'Summary | None']
Target = Mapping[str, Any]


def evaluate_targets(
    targets: Sequence[Target], results: Results
) -> list[dict[str, Any]]:
    """Compare targets with results.

    Args:
        targets: See the module.
        results: Content of a results file.

    Returns:
        For each target ``status`` (``pass``, ``fail``, ``one seed`` if a
        difference has no spread to exceed, ``reported``, ``missing``),
        ``measured``, ``required`` and ``short_by``; shares are fractions,
        differences are in the unit of the metric.

    Raises:
        ValueError: If a target has an unknown key, or no bits.
    """
    return [_evaluate(target, results) for target in targets]


def _evaluate(target: Target, results: Results) -> dict[str, Any]:
    bits = bits_of(target)

    def look(method: str) -> Summary | None:
        return measured_of(
            results, method=method, bits=bits, metric=target.get('metric')
        )

    record = evaluate(target, look=look, bits=bits)
    if 'differences' in record:
        record['discriminating'] = discriminating(
            results, bits=bits, plain=target.get('plain', PLAIN)
        )
    return record


def bits_of(target: Target, *, default: str | None = None) -> str:
    """Return the bits of a target.

    Args:
        target: The target; its keys are checked.
        default: Bits if it names none.

    Raises:
        ValueError: If a key is unknown, or no bits are known.
    """
    unknown = [key for key in target if key not in KEYS]
    if unknown:
        raise ValueError(
            f'target {target.get("name")!r} has unknown key {unknown[0]!r}; '
            f'known are {", ".join(KEYS)}'
        )
    if target['method'] == FLOAT:
        return FLOAT_BITS
    bits = target.get('bits', default)
    if bits is None:
        raise ValueError(f'target {target.get("name")!r} names no bits')
    return str(bits)


def measured_of(
    results: Results, *, method: str, bits: str, metric: str | None = None
) -> Summary | None:
    """Summarize a method or ``float``; None if not measured."""
    if method == FLOAT:
        return float_summary(results, metric=metric)
    return summary_of(results, method=method, bits=bits, metric=metric)


def evaluate(target: Target, *, look: Lookup, bits: str) -> dict[str, Any]:
    """Compare one target with the results.

    Args:
        target: See the module.
        look: Returns the results of a method.
        bits: Bits of the methods.
    """
    lower = bool(target.get('lower_is_better'))
    method, own = _best(names(target['method']), look=look, lower=lower)
    record: dict[str, Any] = {
        'name': target['name'],
        'method': method,
        'bits': bits,
        'status': 'missing',
    }
    if 'metric' in target:
        record['metric'] = target['metric']
    if own is None:
        return record
    record |= {
        'value': own.mean,
        'spread': own.spread,
        'num_seeds': own.num_seeds,
    }
    kinds = [key for key in KINDS if key in target]
    if not kinds or kinds[0] in ('min_share_of_float', 'max_drop_from_float'):
        return record | _against_float(own, target, look(FLOAT))
    kind, bound = kinds[0], target[kinds[0]]
    if kind == 'min_value':
        return record | _bounded('value', own.mean, at_least=bound)
    if kind in DIFFERENCES:
        return record | _differences(
            own, kind, names(bound), look=look, lower=lower
        )
    return record | _against_other(own, kind, bound, look=look, lower=lower)


def names(value: Any) -> list[str]:
    """Return the one or several methods that a target names."""
    return [value] if isinstance(value, str) else list(value)


def _best(
    methods: Sequence[str], *, look: Lookup, lower: bool
) -> tuple[str, Summary | None]:
    """Return the method with the best mean, and its summary."""
    found = [(name, summary) for name in methods if (summary := look(name))]
    if not found:
        return '|'.join(methods), None
    sign = -1 if lower else 1
    return max(found, key=lambda item: sign * item[1].mean)


def _bounded(
    kind: str,
    measured: float,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> dict[str, Any]:
    """Return the outcome of a figure and its lower or upper bound."""
    lacking = measured - at_most if at_least is None else at_least - measured
    met = lacking <= ROUNDING
    return {
        'kind': kind,
        'measured': measured,
        'required': at_most if at_least is None else at_least,
        'status': 'pass' if met else 'fail',
        'short_by': 0.0 if met else lacking,
    }


def _against_float(
    own: Summary, target: Target, reference: Summary | None
) -> dict[str, Any]:
    if reference is None:
        return {'lacks': FLOAT}
    if 'max_drop_from_float' in target:
        return _bounded(
            'drop',
            reference.mean - own.mean,
            at_most=target['max_drop_from_float'],
        )
    share = own.mean / reference.mean if reference.mean else 0.0
    if 'min_share_of_float' not in target:
        return {'kind': 'share', 'measured': share, 'status': 'reported'}
    return _bounded('share', share, at_least=target['min_share_of_float'])


def _against_other(
    own: Summary,
    kind: str,
    bound: Mapping[str, float],
    *,
    look: Lookup,
    lower: bool,
) -> dict[str, Any]:
    outcomes = []
    for name, limit in bound.items():
        other = look(name)
        if other is None:
            return {'lacks': name}
        found = {'other': name, 'other_value': other.mean}
        if kind == 'max_ratio_to':
            ratio = own.mean / max(other.mean, TINY)
            outcomes.append(found | _bounded('ratio', ratio, at_most=limit))
        else:
            gain = (other.mean - own.mean) * (1 if lower else -1)
            outcomes.append(found | _bounded('gain', gain, at_least=limit))
    return min(outcomes, key=_margin)


def _margin(outcome: Mapping[str, Any]) -> float:
    """Return by how much a bound is met; negative if it is not."""
    slack = float(outcome['measured'] - outcome['required'])
    return -slack if outcome['kind'] == 'ratio' else slack


def _differences(
    own: Summary,
    kind: str,
    others: Sequence[str],
    *,
    look: Lookup,
    lower: bool,
) -> dict[str, Any]:
    """Compare means; the smallest margin over the spread decides."""
    margins: dict[str, float] = {}
    differences: dict[str, dict[str, float]] = {}
    num_seeds = own.num_seeds
    for name in others:
        other = look(name)
        if other is None:
            return {'lacks': name}
        num_seeds = min(num_seeds, other.num_seeds)
        spread = max(own.spread, other.spread)
        difference = other.mean - own.mean if lower else own.mean - other.mean
        differences[name] = {'difference': difference, 'spread': spread}
        margins[name] = difference + (
            spread if kind == 'not_below' else -spread
        )
    worst = min(margins, key=lambda name: margins[name])
    return {
        'kind': kind,
        'differences': differences,
        'measured': differences[worst]['difference'],
        'required': differences[worst]['spread']
        * (-1 if kind == 'not_below' else 1),
        'num_seeds': num_seeds,
        'status': _status(kind, margins[worst], num_seeds),
        'short_by': max(0.0, -margins[worst]),
    }


def _status(kind: str, margin: float, num_seeds: int) -> str:
    """Return the outcome of the smallest margin."""
    if kind == 'against':
        return 'reported'
    if kind == 'not_below':
        return 'pass' if margin >= -ROUNDING else 'fail'
    if margin <= ROUNDING:
        return 'fail'
    # A single seed has no spread to be compared with.
    return 'pass' if num_seeds > 1 else 'one seed'


def discriminating(
    results: Results, *, bits: str, plain: str = PLAIN
) -> bool | None:
    """Return whether plain quantization loses at least 10 % of float.

    Args:
        results: Contents of a results file.
        bits: Bits to judge.
        plain: Method that counts as plain.

    Returns:
        The answer; None if it isn't measured.
    """
    found = summary_of(results, method=plain, bits=bits)
    reference = float_summary(results)
    if found is None or reference is None:
        return None
    return found.mean <= PLAIN_SHARE * reference.mean + ROUNDING


def describe(record: Mapping[str, Any]) -> str:
    """Return a target's outcome as one line.

    Args:
        record: One item from :func:`evaluate_targets`.
    """
    head = f'{record["status"]:8} {record["name"]}: '
    if record['status'] == 'missing':
        lacking = record.get('lacks', record['method'])
        return f'{head}{lacking} {record["bits"]} is not measured yet'
    if 'differences' in record:
        return head + _describe_differences(record)
    write = {
        'share': _describe_share,
        'value': _describe_value,
        'drop': _describe_drop,
    }
    return head + write.get(record['kind'], _describe_other)(record)


def _describe_share(record: Mapping[str, Any]) -> str:
    text = f'{record["method"]} keeps {record["measured"]:.1%} of float'
    if 'required' in record:
        text += f', target {record["required"]:.1%}'
    if record['status'] == 'fail':
        text += f', short by {record["short_by"]:.1%}'
    return text


def _describe_value(record: Mapping[str, Any]) -> str:
    return (
        f'{record["method"]} {record["measured"]:.3f}, target '
        f'{record["required"]:.3f}' + _short(record)
    )


def _describe_drop(record: Mapping[str, Any]) -> str:
    return (
        f'{record["method"]} loses {100 * record["measured"]:.2f} '
        f'points, target {100 * record["required"]:.2f}'
    )


def _describe_other(record: Mapping[str, Any]) -> str:
    text = (
        f'{record["method"]} {record["value"]:.3f}, {record["other"]} '
        f'{record["other_value"]:.3f}: '
    )
    if record['kind'] == 'ratio':
        return (
            text + f'ratio {record["measured"]:.2f}, target at most '
            f'{record["required"]:.2f}'
        )
    return (
        text + f'gain {record["measured"]:+.3f}, target at least '
        f'{record["required"]:+.3f}' + _short(record)
    )


def _short(record: Mapping[str, Any]) -> str:
    return (
        f', short by {record["short_by"]:.3f}'
        if record['status'] == 'fail'
        else ''
    )


def _describe_differences(record: Mapping[str, Any]) -> str:
    parts = [
        f'{values["difference"]:+.3f} to {name} '
        f'(spread {values["spread"]:.3f})'
        for name, values in record['differences'].items()
    ]
    text = f'{record["method"]} ' + ', '.join(parts)
    if record['num_seeds'] == 1:
        text += ', one seed'
    if record.get('discriminating') is False:
        text += ', bits do not discriminate'
    return text + _short(record)
