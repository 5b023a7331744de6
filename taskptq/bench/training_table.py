"""Tables of trained models: variants x seeds of one experiment.

A ``<name>.train.yml`` lists configs of float or quantized (``QATHook``)
trainings and their seeds; ``run_training.py`` writes
``results/<name>.train.json`` next to it. A README shows it between
``<!-- training:<name> -->`` and ``<!-- /training -->``, its targets between
``<!-- training-targets:<name> -->`` and ``<!-- /training-targets -->``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from taskptq.bench.markdown import to_markdown
from taskptq.bench.results import Summary, load_results, summarize

SUFFIX = '.train.yml'
ABSENT = 'Not measured yet.\n'
TARGET_KEYS = (
    'name',
    'metric',
    'variants',
    'baseline',
    'min_gain',
    'max_ratio',
    'min_share_of_float',
)
VARIANT_KEYS = ('name', 'config', 'seeds', 'title')

Row = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training of a variant.

    Args:
        variant: Name of the variant.
        config: Its config.
        seed: Seed of weights, image order and augmentation.
    """

    variant: str
    config: str
    seed: int

    @property
    def name(self) -> str:
        """Name that ``--runs`` is matched against, e.g. ``grid-um 0``."""
        return f'{self.variant} {self.seed}'


@dataclass(frozen=True, kw_only=True)
class TrainingTable:
    """Contents of a ``*.train.yml``.

    Args:
        path: The file.
        metric: Key of the evaluator's result that is a row's value.
        variants: Each with ``name``, ``config``, ``seeds`` (default: 0) and
            ``title``.
        columns: Header -> key of ``metrics``, for the printed table.
        targets: Each with ``name``, ``metric``, ``variants`` of which the
            best counts, and either ``baseline`` with ``min_gain`` beyond the
            seed spread or ``max_ratio``, or ``min_share_of_float``.
        float_of: Name of the table of quantized models whose results hold
            the float model that the runs start from; None records none.
        checkpoints: Folder for published runs; None publishes none.
        publish: Seed of the runs to publish.
    """

    path: Path
    metric: str
    variants: Sequence[Mapping[str, Any]]
    columns: Mapping[str, str] = field(default_factory=dict)
    targets: Sequence[Mapping[str, Any]] = ()
    float_of: str | None = None
    checkpoints: str | None = None
    publish: int = 0

    @property
    def name(self) -> str:
        """Return the file's name without its suffix."""
        return self.path.name.removesuffix(SUFFIX)

    @property
    def results(self) -> Path:
        """Return the results file next to the table."""
        return self.path.parent / 'results' / f'{self.name}.train.json'

    def runs(self) -> list[Run]:
        """List the runs: all first seeds, then all second seeds, ..."""
        found = [
            (place, Run(variant=one['name'], config=one['config'], seed=seed))
            for one in self.variants
            for place, seed in enumerate(one.get('seeds', [0]))
        ]
        return [run for _, run in sorted(found, key=lambda item: item[0])]

    def float_reference(self) -> Any:
        """Return what is measured of the float model, None if nothing."""
        if self.float_of is None:
            return None
        path = self.results.with_name(f'{self.float_of}.json')
        return (load_results(path) or {}).get('float')

    def rows(self) -> list[Row]:
        """Return the measured rows, possibly none."""
        results = load_results(self.results)
        return [] if results is None else list(results['rows'])


def read_training_table(path: str | Path) -> TrainingTable:
    """Read a ``*.train.yml``.

    Args:
        path: The file.

    Raises:
        ValueError: If a key is unknown or missing.
        FileNotFoundError: If there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'there is no table {path}')
    content = yaml.safe_load(path.read_text(encoding='utf-8'))
    known = [
        item.name for item in fields(TrainingTable) if item.name != 'path'
    ]
    _check_keys(content, known, where=str(path))
    for key in ('metric', 'variants'):
        if key not in content:
            raise ValueError(f'{path} lacks the key {key!r}')
    for one in content['variants']:
        _check_keys(one, VARIANT_KEYS, where=f'{path}: variants')
    for target in content.get('targets', ()):
        _check_keys(target, TARGET_KEYS, where=f'{path}: targets')
    return TrainingTable(path=path, **content)


def _check_keys(
    content: Mapping[str, Any], known: Sequence[str], *, where: str
) -> None:
    unknown = [key for key in content if key not in known]
    if unknown:
        raise ValueError(
            f'{where} has unknown key {unknown[0]!r}; known are '
            f'{", ".join(known)}'
        )


def find_training_tables(
    root: Path, families: Sequence[str]
) -> dict[str, TrainingTable]:
    """Read all tables of trained models.

    Args:
        root: The repository's top level.
        families: Patterns of the folders that may hold one.
    """
    return {
        table.name: table
        for pattern in families
        for path in sorted(root.glob(f'{pattern}/*{SUFFIX}'))
        for table in [read_training_table(path)]
    }


def summary_of_variant(
    rows: Sequence[Row], variant: str, *, metric: str | None = None
) -> Summary | None:
    """Summarize the seeds of a variant; None if not measured."""
    return summarize(
        [row for row in rows if row['variant'] == variant], metric=metric
    )


def render_training(table: TrainingTable) -> str:
    """Return the table as Markdown, ending in a newline.

    Mean over seeds, ± half the distance between best and worst.
    """
    rows = table.rows()
    if not rows:
        return ABSENT
    header = [
        'variant',
        *table.columns,
        'seeds',
        'training, CPU s',
        'parameters',
    ]
    lines = []
    for one in table.variants:
        summary = summary_of_variant(rows, one['name'])
        if summary is None:
            continue
        cells = [
            _cell(summary_of_variant(rows, one['name'], metric=key))
            for key in table.columns.values()
        ]
        parameters = summary.average('parameters')
        lines.append(
            [
                one.get('title', one['name']),
                *cells,
                str(summary.num_seeds),
                f'{summary.average("train_cpu_seconds") or 0:.0f}',
                f'{parameters:.0f}' if parameters else '',
            ]
        )
    return to_markdown(header, lines) + '\n'


def _cell(summary: Summary | None) -> str:
    if summary is None:
        return ''
    text = f'{summary.mean:.3f}'
    if summary.num_seeds > 1:
        text += f' ± {summary.spread / 2:.3f}'
    return text


def evaluate_training_targets(table: TrainingTable) -> list[dict[str, Any]]:
    """Compare targets with the results.

    Returns:
        For each target ``status`` (``pass``, ``fail``, ``one seed``,
        ``missing``), the best ``variant`` (among those with several seeds, if
        any), ``value``, ``baseline``, ``gain`` or ``ratio``, and ``spread``,
        the larger of the two seed spreads; for ``min_share_of_float``
        ``share``, ``float`` and ``spread``.
    """
    rows = table.rows()
    measured = table.float_reference() or {}
    return [
        _share(target, rows, metrics=measured.get('metrics', {}))
        if 'min_share_of_float' in target
        else _evaluate(target, rows)
        for target in table.targets
    ]


def _share(
    target: Mapping[str, Any],
    rows: Sequence[Row],
    *,
    metrics: Mapping[str, float],
) -> dict[str, Any]:
    """Compare the best variant with the float model."""
    metric = target['metric']
    record = {'name': target['name'], 'metric': metric, 'status': 'missing'}
    best = _best(target, rows)
    if best is None or metric not in metrics:
        return record
    name, own = best
    share = own.mean / metrics[metric]
    met = share >= target['min_share_of_float']
    return record | {
        'variant': name,
        'value': own.mean,
        'float': metrics[metric],
        'share': share,
        'required': target['min_share_of_float'],
        'spread': own.spread,
        'num_seeds': own.num_seeds,
        'status': _status(met, num_seeds=own.num_seeds),
    }


def _best(
    target: Mapping[str, Any], rows: Sequence[Row]
) -> tuple[str, Summary] | None:
    """Return the variant of a target that counts, None if none is there."""
    found = {
        name: summary
        for name in target['variants']
        if (summary := summary_of_variant(rows, name, metric=target['metric']))
    }
    if not found:
        return None
    # A single lucky seed must not beat variants with several seeds.
    several = {name: own for name, own in found.items() if own.num_seeds > 1}
    choose = min if 'max_ratio' in target else max
    best = choose(several or found, key=lambda name: found[name].mean)
    return best, found[best]


def _status(met: bool, *, num_seeds: int) -> str:
    if not met:
        return 'fail'
    return 'pass' if num_seeds > 1 else 'one seed'


def _evaluate(
    target: Mapping[str, Any], rows: Sequence[Row]
) -> dict[str, Any]:
    metric = target['metric']
    found = _best(target, rows)
    base = summary_of_variant(rows, target['baseline'], metric=metric)
    record: dict[str, Any] = {
        'name': target['name'],
        'metric': metric,
        'status': 'missing',
    }
    if found is None or base is None:
        return record
    best, own = found
    record |= {
        'variant': best,
        'value': own.mean,
        'baseline': base.mean,
        'spread': max(own.spread, base.spread),
        'num_seeds': min(own.num_seeds, base.num_seeds),
    }
    if 'max_ratio' in target:
        ratio = own.mean / base.mean if base.mean else float('inf')
        met = ratio <= target['max_ratio']
        return record | {
            'ratio': ratio,
            'required': target['max_ratio'],
            'status': 'pass' if met else 'fail',
        }
    gain = own.mean - base.mean
    required = max(target.get('min_gain', 0.0), record['spread'])
    status = _status(gain >= required, num_seeds=record['num_seeds'])
    return record | {'gain': gain, 'required': required, 'status': status}


def describe_training_target(record: Mapping[str, Any]) -> str:
    """Return a target's outcome as one line."""
    head = f'{record["status"]:8} {record["name"]}: '
    if record['status'] == 'missing':
        return f'{head}{record["metric"]} is not measured yet'
    if 'share' in record:
        return (
            f'{head}{record["variant"]} {record["value"]:.3f}, '
            f'{record["share"]:.1%} of float, target at least '
            f'{record["required"]:.1%} (seed spread '
            f'{record["spread"]:.3f}, {record["num_seeds"]} seeds)'
        )
    text = (
        f'{head}{record["variant"]} {record["value"]:.3f}, baseline '
        f'{record["baseline"]:.3f}, '
    )
    if 'ratio' in record:
        return text + (
            f'ratio {record["ratio"]:.2f}, target at most '
            f'{record["required"]:.2f}'
        )
    return text + (
        f'gain {record["gain"]:+.3f}, target at least '
        f'{record["required"]:+.3f} (seed spread '
        f'{record["spread"]:.3f}, {record["num_seeds"]} seeds)'
    )


def render_training_targets(table: TrainingTable) -> str:
    """Return the outcomes as a list, ending in a newline."""
    lines = map(describe_training_target, evaluate_training_targets(table))
    return ''.join(f'- {line}\n' for line in lines) or ABSENT
