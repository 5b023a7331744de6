"""Render rows' softmax grids, key peaks and trivial masks as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from taskptq.bench.markdown import to_markdown
from taskptq.bench.results import Results, float_rows

Row = Mapping[str, Any]

# Row shown if a marker names none: one granularity per tensor, as published.
ADAPTIVE = ('ptq4sam-s', 'agq-s', 'ptq4sam-l', 'agq')
BITS = 'w4a4'
INTEGRATION = 'BimodalIntegration'
POINT = '.softmax_quantizer'
# Shown instead of tau.
UNIFORM = 0
TRIVIAL = (('filled box', 'miou_box'), ('inscribed ellipse', 'miou_ellipse'))


def pick_row(
    results: Results, wanted: Sequence[str], *, has: Callable[[Row], Any]
) -> Row | None:
    """Choose the row to show; None if none has been measured.

    Args:
        results: Contents of a results file.
        wanted: Method, bits and optionally the seed; empty selects the first
            row of ``ADAPTIVE`` at ``BITS``, or else the first row.
        has: Returns whether a row has the data to show.

    Raises:
        ValueError: If ``wanted`` is not a method and bits.
    """
    if wanted and len(wanted) not in (2, 3):
        raise ValueError(
            f'a marker names the row {" ".join(wanted)!r}: give <method> '
            '<bits>, or <method> <bits> <seed>'
        )
    found = [row for row in results['rows'] if has(row)]
    if wanted:
        names = [
            [row['method'], row['bits'], str(row['seed'])] for row in found
        ]
        return next(
            (
                row
                for row, name in zip(found, names, strict=True)
                if name[: len(wanted)] == list(wanted)
            ),
            None,
        )
    for method in ADAPTIVE:
        for row in found:
            if (row['method'], row['bits']) == (method, BITS):
                return row
    return found[0] if found else None


def _title(row: Row) -> str:
    return f'{row["method"]} {row["bits"]}, seed {row["seed"]}'


def common_prefix(names: Sequence[str]) -> str:
    """Return the module path shared by all names, with its last dot.

    >>> common_prefix(['sam.a.x', 'sam.a.y', 'sam.b'])
    'sam.'
    """
    parts = [name.split('.')[:-1] for name in names]
    shared = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return ''.join(f'{part}.' for part in shared)


def render_softmax(row: Row) -> str:
    """Return the grid of each softmax, and how many improved.

    Args:
        row: Row with ``softmax``, the result of each grid search.
    """
    found = {
        name.removesuffix(POINT): grid for name, grid in row['softmax'].items()
    }
    prefix = common_prefix(list(found))
    lines = [
        [
            f'`{name.removeprefix(prefix)}`',
            _taus(grid['tau']),
            *(
                f'{grid[key]:.4f}'
                for key in ('error', 'error_tau1', 'error_uniform')
            ),
        ]
        for name, grid in found.items()
    ]
    table = to_markdown(
        ['attention', 'tau', 'error', 'tau = 1', 'uniform'], lines
    )
    return f'{table}\n\n{_verdict(found)} Row: {_title(row)}.\n'


def _taus(taus: Sequence[int]) -> str:
    """Format one granularity, or the heads' granularities with counts.

    >>> _taus([2]), _taus([4, 0, 4])
    ('2', 'uniform (1 head), 4 (2 heads)')
    """
    names = {tau: 'uniform' if tau == UNIFORM else str(tau) for tau in taus}
    if len(taus) == 1:
        return names[taus[0]]
    parts = []
    for tau in sorted(names):
        count = list(taus).count(tau)
        plural = '' if count == 1 else 's'
        parts.append(f'{names[tau]} ({count} head{plural})')
    return ', '.join(parts)


def _verdict(found: Mapping[str, Mapping[str, Any]]) -> str:
    """Count the softmaxes whose grid beats the fixed ones."""
    grids = found.values()
    below = sum(
        grid['error'] < min(grid['error_tau1'], grid['error_uniform'])
        for grid in grids
    )
    not_above = sum(
        grid['error'] <= min(grid['error_tau1'], grid['error_uniform'])
        for grid in grids
    )
    return (
        f'The chosen grid is below both tau = 1 and uniform on {below} of '
        f'{len(found)} softmaxes, and above neither on {not_above}.'
    )


def bimodal_entries(row: Row) -> list[Mapping[str, Any]]:
    """Return a row's BimodalIntegration entries, one per attention."""
    return [
        entry
        for report in row.get('rewrites') or ()
        if report['rewrite'] == INTEGRATION
        for entry in report['entries']
    ]


def render_peaks(row: Row) -> str:
    """Return BimodalIntegration's decision for each attention.

    Args:
        row: Row with its report in ``rewrites``.
    """
    entries = bimodal_entries(row)
    prefix = common_prefix([entry['name'] for entry in entries])
    lines = []
    for entry in entries:
        details = entry['details']
        positions = details.get('peaks', {}).get('positions')
        lines.append(
            [
                f'`{entry["name"].removeprefix(prefix)}`',
                '' if positions is None else str(len(positions)),
                _decision(entry),
                _range(details.get('range_before')),
                _range(details.get('range_after')),
            ]
        )
    table = to_markdown(
        ['attention', 'peaks', 'decision', 'range before', 'range after'],
        lines,
    )
    return f'{table}\n\nRow: {_title(row)}.\n'


def _decision(entry: Mapping[str, Any]) -> str:
    if entry['status'] != 'applied':
        return f'{entry["status"]}: {entry["reason"]}'
    details = entry['details']
    channels = details['num_negative'] + details['num_positive']
    return f'{details["num_negative"]} of {channels} channels flipped'


def _range(bounds: Sequence[float] | None) -> str:
    if bounds is None:
        return ''
    return f'{bounds[0]:.2f} to {bounds[1]:.2f}'


def render_baselines(results: Results) -> str:
    """Return the mean IoU of trivial masks and of the float model.

    Args:
        results: Results whose float metrics have
            ``<prompts>/[matched_]miou``, also with ``_box`` and ``_ellipse``.

    Raises:
        ValueError: If there are none.
    """
    lines = list(_baseline_lines(float_rows(results)[0]['metrics']))
    if not lines:
        raise ValueError(
            f'results of {results["model"]}_{results["dataset"]} have no '
            '<prompts>/miou_box, which a baselines marker needs'
        )
    return ''.join(f'{line}\n' for line in lines)


def _baseline_lines(metrics: Mapping[str, float]) -> Iterator[str]:
    for key in metrics:
        stem, found, rest = key.partition('miou_box')
        if not found or rest:
            continue
        prompts, _, matched = stem.partition('/')
        where = ', objects found' if matched else ''
        parts = [
            f'{name} {metrics[stem + kind]:.4f}' for name, kind in TRIVIAL
        ]
        parts.append(f'float model {metrics[stem + "miou"]:.4f}')
        yield f'- mean IoU, prompts `{prompts}`{where}: {", ".join(parts)}'
