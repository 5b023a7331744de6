"""Tables of results as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from taskptq.bench.results import Results, Summary, float_summary, summary_of

LADDER = (
    'w8a8',
    'w6a6-8',
    'w6a6',
    'w4a8',
    'w4a4-8',
    'w4a4',
    'w3a3-8',
    'w3a3',
    'w2a4-8',
    'w2a4',
    'w2a2-8',
    'w2a2',
)
METHODS = (
    # Statistics first, then learned methods: plain, published, ours.
    'minmax',
    'mse',
    'aciq',
    'big-s',
    'agq-s',
    'ptq4sam-s',
    'centering-s',
    'centering+agq-s',
    'centering+agq-head-s',
    'centering+hybrid-s',
    'centering+hybrid-head-s',
    'gptq',
    'adaround',
    'brecq',
    'qdrop',
    'published-eval',
    'big',
    'agq',
    'ptq4sam-l',
    'ptq4sam-l+published-eval',
    'centering',
    'centering+agq',
    'centering+agq-head',
    'centering+hybrid',
    'centering+hybrid-head',
    'network-uniform',
    'sgf',
    'sas',
    'selective-focus',
    'qdrop+selective-focus',
    'da',
    'fqm',
    'drd',
    'drd+centering',
    'lsq-qat',
    'da-qat',
    'fqm-qat',
    'drd-qat',
    'drd+relative-qat',
    'fqm+agreement-qat',
    'qdrop+network-uniform',
    'kl-fg',
    'head-mse',
)
KIB = 1024


def to_markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Format a table with aligned columns.

    Args:
        header: Names of the columns.
        lines: Cells of each line.
    """
    widths = [
        max(len(row[i]) for row in [header, *lines])
        for i in range(len(header))
    ]

    def join(cells: Sequence[str]) -> str:
        padded = (
            cell.ljust(width)
            for cell, width in zip(cells, widths, strict=True)
        )
        return '| ' + ' | '.join(padded) + ' |'

    rule = '|' + '|'.join('-' * (width + 2) for width in widths) + '|'
    return '\n'.join([join(header), rule, *map(join, lines)])


def render_benchmarks(records: Sequence[Mapping[str, Any]]) -> str:
    """Return one line for each result of ``tools/benchmarks``.

    Args:
        records: Contents of its JSON files.
    """
    lines = []
    for record in records:
        bound, sign = (
            ('at least', '≥')
            if 'reconstruction' in record['benchmark']
            else ('at most', '≤')
        )
        verdict = (
            'reached'
            if record['reached']
            else (f'missed: {bound} {record["target"]}')
        )
        lines.append(
            [
                record['benchmark'],
                f'{record["ratio"]:.2f}',
                f'{sign} {record["target"]}',
                verdict,
                record['commit'][:9],
            ]
        )
    return to_markdown(
        ['benchmark', 'ratio', 'target', 'outcome', 'commit'], lines
    )


def _rank(name: str, known: Sequence[str]) -> tuple[int, str]:
    return (known.index(name) if name in known else len(known), name)


def groups(results: Results) -> Iterator[tuple[str, str, Summary]]:
    """Walk over (bits, method, summary), most bits first."""
    found = {(row['bits'], row['method']) for row in results['rows']}
    order = sorted(
        found,
        key=lambda item: (_rank(item[0], LADDER), _rank(item[1], METHODS)),
    )
    for bits, method in order:
        summary = summary_of(results, method=method, bits=bits)
        if summary is not None:
            yield bits, method, summary


def _number(value: float | None) -> str:
    """Format shares of 1 with three decimals, percentages with two."""
    if value is None:
        return ''
    return f'{value:.2f}' if abs(value) > 1 else f'{value:.3f}'


def _mean(summary: Summary) -> str:
    text = _number(summary.mean)
    if summary.num_seeds > 1:
        text += f' ± {summary.spread / 2:.3f} ({summary.num_seeds})'
    return text


def _whole(value: float | None) -> str:
    return f'{value:.0f}' if value else ''


def _line(
    name: Sequence[str],
    summary: Summary,
    *,
    metric: str,
    columns: Mapping[str, str],
    reference: Summary,
    links: bool = False,
) -> list[str]:
    """Return the cells of one method at one bit width."""
    share = summary.mean / reference.mean if reference.mean else 0.0
    size = summary.average('file_bytes')
    decided = summary.average('decided')
    return [
        *name,
        _mean(summary),
        f'{share:.1%}',
        *(
            _number(summary.average(key))
            for key in columns.values()
            if key != metric
        ),
        _whole(summary.average('calibration_seconds')),
        _whole(summary.average('reconstruction_seconds')),
        f'{decided:.1%}' if decided is not None else '',
        _size(size, summary, links=links),
    ]


def _size(size: float | None, summary: Summary, *, links: bool) -> str:
    """Return a file's size, as a link to it where the zoo has it."""
    text = f'{size / KIB:.0f}' if size else ''
    named = (row.get('checkpoint') for row in summary.rows)
    places = [place for place in named if place]
    return f'[{text}](/{places[0]})' if text and links and places else text


def render_results(
    results: Results,
    *,
    columns: Mapping[str, str] | None = None,
    links: bool = False,
) -> str:
    """Return the whole table of one float model.

    Args:
        results: Content of a results file.
        columns: Header -> key of ``metrics``; the metric's own entry names
            the value's column.
        links: Whether sizes are links to the files that the zoo has.
    """
    metric = results['metric']
    columns = dict(columns or {})
    titles = {key: title for title, key in columns.items()}
    reference = float_summary(results)
    if reference is None:
        return 'Not measured yet.'
    header = [
        'bits',
        'method',
        titles.get(metric, metric),
        'of float',
        *(title for title, key in columns.items() if key != metric),
        'calibration, s',
        'reconstruction, s',
        'decided',
        'file, KiB',
    ]
    lines = [
        _line(
            ('32', 'float'),
            reference,
            metric=metric,
            columns=columns,
            reference=reference,
        )
    ]
    lines += [
        _line(
            (bits, method),
            summary,
            metric=metric,
            columns=columns,
            reference=reference,
            links=links,
        )
        for bits, method, summary in groups(results)
    ]
    return to_markdown(header, lines)


def render_summary(
    all_results: Sequence[Results], cells: Sequence[tuple[str, str]]
) -> str:
    """Return one line for each model.

    Args:
        all_results: Contents of results files.
        cells: (bits, method) of the columns; of several methods, as in
            ``'mixed|mse'``, the first that was measured counts and is named.
    """
    header = [
        'model',
        'data',
        'metric',
        'float',
        *(
            bits if '|' in method else f'{bits} {method}'
            for bits, method in cells
        ),
    ]
    lines = []
    for results in all_results:
        reference = float_summary(results)
        if reference is None:
            continue
        line = [
            results['model'],
            results['dataset'],
            results['metric'].rpartition('/')[2],
            _mean(reference),
        ]
        for bits, method in cells:
            line.append(_cell(results, method=method, bits=bits))
        lines.append(line)
    return to_markdown(header, lines)


def first_measured(
    results: Results, *, method: str, bits: str
) -> tuple[str, Summary] | None:
    """Return the first of some methods that was measured, with its results.

    Args:
        results: Contents of a results file.
        method: Methods, joined by ``|``.
        bits: Bits.
    """
    for one in method.split('|'):
        summary = summary_of(results, method=one, bits=bits)
        if summary is not None:
            return one, summary
    return None


def _cell(results: Results, *, method: str, bits: str) -> str:
    """Return the value of a cell, with the method if it has a choice."""
    found = first_measured(results, method=method, bits=bits)
    if found is None:
        return ''
    name, summary = found
    value = _mean(summary)
    return f'{value}, {name}' if '|' in method else value
