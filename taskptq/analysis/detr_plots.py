"""Pictures of the effect of quantization on parts of a DETR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from taskptq.analysis.bars import COLORS, save

FLOAT_COLOR = '0.6'
QUANTIZED_COLOR = 'tab:blue'


def plot_progressive(
    steps: Mapping[str, Mapping[str, float | None]],
    path: str | Path,
    *,
    title: str = '',
) -> Path:
    """Draw one line per metric over the steps from float to quantized.

    Args:
        steps: Title of a step -> metric -> value; None leaves a gap.
        path: PNG file; its folder is made.
        title: Title of the picture.

    Returns:
        The path.

    Raises:
        ValueError: If there are fewer than two steps.
    """
    from matplotlib.figure import Figure

    if len(steps) < 2:
        raise ValueError(f'{len(steps)} steps: give at least two')
    figure = Figure(
        figsize=(1.4 * len(steps) + 1.5, 3.4), layout='constrained'
    )
    axes = figure.subplots()
    names = list(
        dict.fromkeys(name for values in steps.values() for name in values)
    )
    for number, name in enumerate(names):
        axes.plot(
            range(len(steps)),
            [_or_nan(values.get(name)) for values in steps.values()],
            marker='o',
            markersize=4,
            linewidth=2 if number == 0 else 1,
            color=COLORS[number % len(COLORS)],
            label=name,
        )
    axes.set_xticks(
        range(len(steps)), [fill(step, width=14) for step in steps], fontsize=7
    )
    known = [
        value
        for values in steps.values()
        for value in values.values()
        if value is not None
    ]
    axes.set_ylim(0, 1.08 * max([*known, 1e-3]))
    axes.grid(axis='y', color='0.9')
    axes.set_ylabel('average precision')
    axes.set_title(title, fontsize=9)
    figure.legend(fontsize=7, loc='outside right upper')
    return save(figure, path)


def plot_group_losses(
    losses: Mapping[str, float],
    path: str | Path,
    *,
    unit: str = 'AP lost',
    title: str = '',
) -> Path:
    """Draw a horizontal bar for each group, the greatest loss on top.

    Args:
        losses: Group -> float value minus the value with this group
            quantized.
        path: PNG file; its folder is made.
        unit: Label of the value axis.
        title: Title of the picture.

    Returns:
        The path.

    Raises:
        ValueError: If there is no group.
    """
    from matplotlib.figure import Figure

    if not losses:
        raise ValueError('0 groups: give at least one to draw')
    ordered = sorted(losses.items(), key=lambda item: item[1])
    figure = Figure(
        figsize=(5.2, 0.32 * len(ordered) + 1.0), layout='constrained'
    )
    axes = figure.subplots()
    bars = axes.barh(
        [name for name, _ in ordered],
        [value for _, value in ordered],
        color=QUANTIZED_COLOR,
    )
    axes.bar_label(bars, fmt='%.3f', fontsize=7, padding=2)
    axes.axvline(0, color='0.3', linewidth=0.8)
    axes.margins(x=0.15)
    axes.locator_params(axis='x', nbins=5)  # more labels would overlap
    axes.tick_params(labelsize=8)
    axes.set_xlabel(unit, fontsize=8)
    axes.set_title(title, fontsize=9)
    return save(figure, path)


def plot_queries(
    layers: Mapping[str, Mapping[str, Any]],
    path: str | Path,
    *,
    titles: Sequence[str] | None = None,
) -> Path:
    """Draw a row of histograms for each attention, a column for each model.

    Args:
        layers: Attention -> result of ``describe_queries``.
        path: PNG file; its folder is made.
        titles: Models to draw; None is all of the first attention.

    Returns:
        The path.

    Raises:
        ValueError: If there is no attention.
    """
    from matplotlib.figure import Figure

    if not layers:
        raise ValueError('0 attentions: give at least one to draw')
    first = next(iter(layers.values()))
    titles = list(first['stages']) if titles is None else list(titles)
    figure = Figure(
        figsize=(2.6 * len(titles), 1.7 * len(layers) + 0.3),
        layout='constrained',
    )
    grid = figure.subplots(
        len(layers), len(titles), squeeze=False, sharex='row', sharey='row'
    )
    for row, (name, layer) in zip(grid, layers.items(), strict=True):
        for axes, title in zip(row, titles, strict=True):
            _draw_queries(axes, layer['stages'][title], layer['edges'])
            axes.set_title(f'{title}\n{name}', fontsize=7)
    return save(figure, path)


def _draw_queries(
    axes: Any, stage: Mapping[str, Any], edges: Sequence[float]
) -> None:
    """Draw one histogram, with the entropy of its codes if there are any."""
    is_float = stage['num_bits'] is None
    axes.stairs(
        stage['density'],
        edges,
        fill=True,
        color=FLOAT_COLOR if is_float else QUANTIZED_COLOR,
    )
    label = f'std {stage["std"]:.2g}'
    if not is_float:
        label += (
            f'\n{stage["entropy"]:.2f} of {stage["num_bits"]} bits\n'
            f'{stage["num_codes"]} codes'
        )
    axes.text(
        0.98,
        0.95,
        label,
        transform=axes.transAxes,
        fontsize=6,
        ha='right',
        va='top',
    )
    axes.tick_params(labelsize=6)
    axes.set_yticks([])


def _or_nan(value: float | None) -> float:
    return float('nan') if value is None else value
