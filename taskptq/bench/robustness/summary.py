"""Tables of a results file: losses by noise, means, and excess losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from taskptq.analysis.page.metrics import main_metric
from taskptq.bench.robustness.plan import CLEAN, COMBINED
from taskptq.bench.robustness.subjects import FLOAT
from taskptq.robustness.scores import (
    excess,
    mean_performance,
    relative_performance,
)

__all__ = ['metric_of', 'summarize', 'values_of']

Content = Mapping[str, Any]


def metric_of(content: Content) -> str | None:
    """Return the metric that sums a model up, from the clean row."""
    for row in content['rows']:
        for found in row['results'].values():
            name = main_metric(found.get('metrics') or {})
            if name is not None:
                return name
    return None


def values_of(content: Content, row: Mapping[str, Any]) -> dict[str, float]:
    """Return model -> metric of a row; models without a value are absent."""
    metric = metric_of(content)
    return {
        name: float(found['metrics'].get(metric, 0.0))
        for name, found in row['results'].items()
        if 'metrics' in found
    }


def row_named(content: Content, name: str) -> Mapping[str, Any] | None:
    """Return a row of a results file."""
    return next((r for r in content['rows'] if r['noise'] == name), None)


def means_by_kind(
    content: Content, family: str, model: str
) -> dict[str, list[float]]:
    """Return kind -> values of a model over its options or severities."""
    found: dict[str, list[float]] = {}
    for row in content['rows']:
        if row['family'] != family or row['noise'] == COMBINED:
            continue
        value = values_of(content, row).get(model)
        if value is not None:
            found.setdefault(row['kind'], []).append(value)
    return found


def shared_means(
    content: Content, family: str, models: Sequence[str]
) -> dict[str, dict[str, list[float]]]:
    """Return each model's values, of rows that all of them have."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in models}
    for row in content['rows']:
        values = values_of(content, row)
        if (
            row['family'] != family
            or row['noise'] == COMBINED
            or not all(name in values for name in models)
        ):
            continue
        for name in models:
            found[name].setdefault(row['kind'], []).append(values[name])
    return found


def summarize(content: Content) -> dict[str, dict[str, Any]]:
    """Return, for each family, the scores of each model.

    Returns:
        Family -> model -> ``clean`` (P), ``mean`` (mPC), ``relative`` (rPC),
        ``worst`` and ``worst_noise``, and for quantized models ``loss_clean``,
        ``loss_noise``, ``excess``, ``relative_loss_clean`` and
        ``relative_loss_noise``, all in the metric's unit; over rows that
        every model has.
    """
    clean_row = row_named(content, CLEAN)
    if clean_row is None:
        return {}
    clean = values_of(content, clean_row)
    families = dict.fromkeys(row['family'] for row in content['rows'])
    summary: dict[str, dict[str, Any]] = {}
    for family in families:
        names = [name for name in clean if family != CLEAN]
        if family == 'attacks':
            # White-box rows and transferred ones have different models.
            summary[family] = attacked(content, clean)
            continue
        values = shared_means(content, family, names) if names else {}
        found = {
            name: scores(
                values[name],
                clean=clean,
                model=name,
                float_values=values.get(FLOAT),
            )
            for name in names
            if values[name]
        }
        for name, entry in found.items():
            entry |= worst_of(content, family, name)
        if found:
            summary[family] = found
    return {family: found for family, found in summary.items() if found}


def scores(
    values: Mapping[str, Sequence[float]],
    *,
    clean: Mapping[str, float],
    model: str,
    float_values: Mapping[str, Sequence[float]] | None,
) -> dict[str, Any]:
    """Return the scores of one model in one family; see summarize."""
    mean = mean_performance(values)
    entry: dict[str, Any] = {
        'clean': clean[model],
        'mean': mean,
        'relative': relative_performance(mean, clean=clean[model]),
    }
    if model != FLOAT and float_values:
        found = excess(
            float_clean=clean[FLOAT],
            float_noise=mean_performance(float_values),
            clean=clean[model],
            noise=mean,
        )
        entry |= {
            'loss_clean': found.clean,
            'loss_noise': found.noise,
            'excess': found.excess,
            'relative_loss_clean': found.relative_clean,
            'relative_loss_noise': found.relative_noise,
        }
    return entry


def worst_of(content: Content, family: str, model: str) -> dict[str, Any]:
    """Return the single noise that costs a model most."""
    found = {
        row['noise']: value
        for row in content['rows']
        if row['family'] == family
        and row['noise'] != COMBINED
        and (value := values_of(content, row).get(model)) is not None
    }
    worst = min(found, key=lambda noise: found[noise])
    return {'worst': found[worst], 'worst_noise': worst}


def attacked(
    content: Content, clean: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """Return the least metric of each model at each budget.

    A model holds only as much as it keeps under its own gradients, under
    those of the float model and under random signs.
    """
    found: dict[str, dict[str, Any]] = {}
    for row in content['rows']:
        if row['family'] != 'attacks':
            continue
        budget = row['noise'].partition('=')[2]
        for name, value in values_of(content, row).items():
            entry = found.setdefault(name, {'clean': clean.get(name)})
            least = entry.setdefault('least', {})
            least[budget] = min(value, least.get(budget, value))
    return found
