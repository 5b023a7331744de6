"""A picture of a results file: loss under each noise, model by model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taskptq.analysis.bars import COLORS, save
from taskptq.bench.robustness.markdown import factor_of
from taskptq.bench.robustness.plan import CLEAN
from taskptq.bench.robustness.subjects import FLOAT
from taskptq.bench.robustness.summary import (
    means_by_kind,
    metric_of,
    row_named,
    values_of,
)

__all__ = ['losses_by_kind', 'plot_losses']


def losses_by_kind(
    content: Mapping[str, Any],
) -> dict[str, dict[str, float | None]]:
    """Return label -> model -> loss against the clean float model.

    The first label is ``clean``: what quantization alone costs. The others
    are means over a noise's options, severities or budgets.

    Args:
        content: Of the results file.
    """
    clean_row = row_named(content, CLEAN)
    clean = {} if clean_row is None else values_of(content, clean_row)
    if FLOAT not in clean:
        return {}
    reference = clean[FLOAT]
    found: dict[str, dict[str, float | None]] = {
        CLEAN: {name: reference - value for name, value in clean.items()}
    }
    for family in dict.fromkeys(row['family'] for row in content['rows']):
        if family == CLEAN:
            continue
        for name in clean:
            for kind, values in means_by_kind(content, family, name).items():
                mean = sum(values) / len(values)
                found.setdefault(kind, {})[name] = reference - mean
    return found


def plot_losses(content: Mapping[str, Any], path: str | Path) -> Path | None:
    """Draw horizontal bars: the loss of each model under each noise.

    Args:
        content: Of the results file.
        path: PNG file; its folder is made.

    Returns:
        The path; None if there is nothing to draw.
    """
    from matplotlib.figure import Figure

    losses = losses_by_kind(content)
    if not losses:
        return None
    names = list(losses[CLEAN])
    factor = factor_of(content)
    height = 0.8 / len(names)
    figure = Figure(
        figsize=(7, 1.2 + 0.28 * len(losses) * max(1, len(names) / 2)),
        layout='constrained',
    )
    axes = figure.subplots()
    for number, name in enumerate(names):
        places = [
            place + height * (number - (len(names) - 1) / 2)
            for place in range(len(losses))
        ]
        values = [
            factor * (found.get(name) or 0.0) for found in losses.values()
        ]
        axes.barh(
            places,
            values,
            height=height,
            color=COLORS[number % len(COLORS)],
            label=name,
        )
    axes.set_yticks(range(len(losses)), list(losses))
    axes.invert_yaxis()
    axes.axvline(0, color='0.3', linewidth=0.8)
    axes.set_xlabel(f'loss of {metric_of(content)} against float on clean')
    axes.set_title(f'{content["model"]}, {content["images"]} images')
    axes.legend(fontsize=8)
    return save(figure, path)
