"""Write RESULTS.md from the results of the study.

    python projects/robustness/collect.py

Every number comes from a file in projects/robustness/results, which
``measure.py`` wrote.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from taskptq.bench.markdown import to_markdown
from taskptq.bench.robustness.markdown import factor_of, render, shown
from taskptq.bench.robustness.plan import CLEAN
from taskptq.bench.robustness.subjects import FLOAT
from taskptq.bench.robustness.summary import (
    means_by_kind,
    metric_of,
    row_named,
    summarize,
    values_of,
)

HERE = Path(__file__).resolve().parent
WORST = {'impulse_noise', 'glass_blur'}
HARMLESS = ('decode', 'color', 'crop')
MIX = re.compile(r'^(?P<recipe>.+)_(?P<mix>[a-z]+)-(?P<seed>\d+)$')
INTRO = """# Robustness: results

By `measure.py`, see [README.md](README.md). Claims are those of RobustMQ
(arXiv 2308.02350) for classification. "Within chance": no more than the
metric of the float or of the quantized model moves under other decoders,
colors and a window shifted by a pixel, which hardly change an image.
"""
OVERVIEW = """Metric on clean images, its mean under system noise and under
corruptions (in brackets the share of the clean metric, rPC), and the least
under attacks. Losses are the float model's metric
less that of the quantized one: what it grows by under noise is the excess."""

Content = Mapping[str, Any]


def load(folder: Path) -> dict[str, Content]:
    """Return the results by name."""
    return {
        path.stem: json.loads(path.read_text(encoding='utf-8'))
        for path in sorted(folder.glob('*.json'))
    }


def losses(content: Content, family: str, model: str) -> dict[str, float]:
    """Return the mean loss of a model under each kind of noise."""
    clean_row = row_named(content, CLEAN)
    clean = values_of(content, clean_row)[model] if clean_row else 0.0
    return {
        kind: clean - statistics.fmean(values)
        for kind, values in means_by_kind(content, family, model).items()
    }


def resize_losses(content: Content) -> dict[str, float]:
    """Return the loss of the float model by resize method."""
    clean_row = row_named(content, CLEAN)
    clean = values_of(content, clean_row)[FLOAT] if clean_row else 0.0
    return {
        row['noise'].partition('=')[2]: clean - values_of(content, row)[FLOAT]
        for row in content['rows']
        if row['kind'] == 'resize' and FLOAT in values_of(content, row)
    }


def chance(content: Content, model: str = FLOAT) -> float:
    """Return how far the metric moves by what hardly changes a pixel.

    The greatest change of the float or the given model's metric under other
    decoders, colors and the shifted window: smaller differences say nothing.
    """
    clean_row = row_named(content, CLEAN)
    clean = values_of(content, clean_row) if clean_row else {}
    moved = [
        abs(values[name] - clean[name])
        for row in content['rows']
        if row['kind'] in HARMLESS
        for values in [values_of(content, row)]
        for name in (FLOAT, model)
        if name in values
    ]
    return max(moved, default=0.0)


def verdict(difference: float, *, least: float = 0.0) -> str:
    """Return whether a difference is positive, beyond chance."""
    if abs(difference) <= least:
        return 'within chance'
    return 'yes' if difference > 0 else 'no'


def quantized_claims(content: Content) -> Iterator[list[str]]:
    """Yield a line for each claim on each quantized model."""
    summary = summarize(content)
    factor = factor_of(content)
    models = [e['name'] for e in content['subjects'] if e['name'] != FLOAT]
    for family, word in (
        ('systems', 'loses more than float under system noise'),
        ('corruptions', 'loses more than float under corruptions'),
    ):
        for name in models:
            found = summary.get(family, {}).get(name, {})
            if 'excess' in found:
                value = factor * found['excess']
                yield [
                    word,
                    name,
                    f'excess {value:+.2f}',
                    verdict(value, least=factor * chance(content, name)),
                ]
    attacked = summary.get('attacks', {})
    base = attacked.get(FLOAT)
    for name in models:
        found = attacked.get(name)
        if not base or not found:
            continue
        for budget in found['least']:
            shares = [
                one['least'][budget] / one['clean']
                for one in (base, found)
                if one['clean'] and budget in one['least']
            ]
            if len(shares) == 2:
                yield [
                    f'keeps more than float under attacks, {budget}/255',
                    name,
                    f'{100 * shares[1]:.1f} % against {100 * shares[0]:.1f} %',
                    verdict(
                        (shares[1] - shares[0]) * base['clean'],
                        least=chance(content, name),
                    ),
                ]


def float_claims(content: Content) -> Iterator[list[str]]:
    """Yield a line for each claim on the float model."""
    factor = factor_of(content)
    by_method = resize_losses(content)
    if by_method:
        worst = max(by_method, key=lambda name: by_method[name])
        loss = by_method[worst]
        holds = 'yes' if 'nearest' in worst else 'no'
        yield [
            'nearest is the worst resize',
            FLOAT,
            f'{worst} loses {factor * loss:.2f}',
            holds if loss > chance(content) else 'within chance',
        ]
    by_kind = losses(content, 'corruptions', FLOAT)
    if len(by_kind) > 2:
        order = sorted(by_kind, key=lambda name: -by_kind[name])
        shown = [f'{n} {factor * by_kind[n]:.2f}' for n in order]
        yield [
            'impulse noise and glass blur are the worst corruptions',
            FLOAT,
            ', '.join(shown[:2]),
            'yes' if set(order[:2]) == WORST else 'no',
        ]
        yield [
            'brightness is the least harmful corruption',
            FLOAT,
            shown[-1],
            'yes' if order[-1] == 'brightness' else 'no',
        ]


def overview(results: Mapping[str, Content]) -> str:
    """Return a line for each model: clean loss beside loss under noise."""
    lines = []
    for name, content in results.items():
        factor = factor_of(content)
        summary = summarize(content)
        attacks = summary.get('attacks', {})
        clean_row = row_named(content, CLEAN)
        clean = values_of(content, clean_row) if clean_row else {}
        for model, value in clean.items():
            cells = [name, model, f'{factor * value:.2f}']
            cells.append(f'{factor * (clean[FLOAT] - value):+.2f}')
            for family in ('systems', 'corruptions'):
                found = summary.get(family, {}).get(model, {})
                share = found.get('relative')
                kept = '' if share is None else f' ({100 * share:.0f} %)'
                cells += [
                    shown(found.get('mean'), factor=factor) + kept,
                    shown(found.get('loss_noise'), factor=factor, sign='+'),
                ]
            least = attacks.get(model, {}).get('least', {})
            cells.append(
                ', '.join(
                    f'{factor * kept:.2f} at {budget}/255'
                    for budget, kept in least.items()
                )
                or '-'
            )
            lines.append(cells)
    header = ['study', 'model', 'clean', 'loss to float']
    for word in ('systems', 'corruptions'):
        header += [word, 'loss to float there']
    return to_markdown([*header, 'attacked'], lines)


def verdict_counts(lines: Sequence[Sequence[str]]) -> str:
    """Return how often each claim holds.

    Args:
        lines: Study, claim, model, what was measured, verdict.
    """
    words = ('yes', 'no', 'within chance')
    claims = dict.fromkeys(line[1] for line in lines)
    return to_markdown(
        ['claim', *words],
        [
            [
                claim,
                *(
                    str(sum((c, v) == (claim, word) for _, c, *_, v in lines))
                    for word in words
                ),
            ]
            for claim in claims
        ],
    )


def mix_table(content: Content) -> str:
    """Return what calibration on noisy images gives, over seeds."""
    factor = factor_of(content)
    groups: dict[str, list[str]] = {}
    for entry in content['subjects']:
        match = MIX.match(entry['name'])
        if match:
            label = f'{match["recipe"]}, {match["mix"]}'
            groups.setdefault(label, []).append(entry['name'])
    if not groups:
        return ''
    lines = []
    for row in content['rows']:
        values = values_of(content, row)
        cells = [row['noise']]
        if FLOAT not in values:
            continue
        cells.append(f'{factor * values[FLOAT]:.2f}')
        for names in groups.values():
            found = [factor * values[name] for name in names if name in values]
            if not found:
                cells.append('-')
                continue
            spread = statistics.stdev(found) if len(found) > 1 else 0.0
            cells.append(f'{statistics.fmean(found):.2f} ± {spread:.2f}')
        lines.append(cells)
    return to_markdown(['noise', FLOAT, *groups], lines)


def page(results: Mapping[str, Content]) -> str:
    """Return the whole page."""
    studies = {k: v for k, v in results.items() if not mix_table(v)}
    parts = [INTRO.strip(), '## Overview', OVERVIEW, overview(studies)]
    parts.append('## Claims of the study')
    lines: list[Sequence[str]] = []
    for name, content in studies.items():
        claims = [*float_claims(content), *quantized_claims(content)]
        lines += [[name, *claim] for claim in claims]
    header = ['study', 'claim', 'model', 'measured', 'holds']
    parts += [verdict_counts(lines), to_markdown(header, lines)]
    mixes = [v for k, v in results.items() if k not in studies]
    parts += ['## Calibration on noisy images'] * bool(mixes)
    for content in mixes:
        parts += [
            f'{metric_of(content)} on {content["images"]} images; mean '
            'and standard deviation over seeds of the calibration images. '
            f'`{content["config"]}`.',
            mix_table(content),
        ]
    for name, content in studies.items():
        text = render(content).replace('\n## ', '\n### ')
        parts.append('#' + text.strip())
        if (HERE / 'results' / f'{name}.png').is_file():
            parts.append(f'![Losses of {name}](results/{name}.png)')
        commits = dict.fromkeys(run['commit'][:9] for run in content['runs'])
        parts.append(f'Commits: {", ".join(commits)}.')
    return '\n\n'.join(parts) + '\n'


def main() -> None:
    """Write the page."""
    results = load(HERE / 'results')
    (HERE / 'RESULTS.md').write_text(page(results), encoding='utf-8')


if __name__ == '__main__':
    main()
