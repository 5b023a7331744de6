"""Pictures of the results of the analysis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Distributions = Mapping[str, Mapping[str, Any]]


def plot_key_histograms(
    stages: Mapping[str, Distributions],
    path: str | Path,
    *,
    names: Sequence[str] | None = None,
) -> Path:
    """Draw histograms of keys, a row per attention, a column per stage.

    Dashed lines mark peaks. A row shares its value axis, so that the ranges
    of the stages can be compared.

    Args:
        stages: Title of a stage (e.g. 'float', 'centered') -> result of
            ``analysis.distribution.key_distributions``.
        path: PNG file; its folder is made.
        names: Attentions to draw; None is all of the first stage.

    Returns:
        The path.

    Raises:
        ValueError: If there is no stage or no attention, or a stage lacks
            one.
    """
    from matplotlib.figure import Figure

    first: Distributions = next(iter(stages.values()), {})
    names = list(first) if names is None else list(names)
    _check(stages, names)
    figure = Figure(
        figsize=(3.2 * len(stages), 2.0 * len(names) + 0.4),
        layout='constrained',
    )
    grid = figure.subplots(
        len(names), len(stages), squeeze=False, sharex='row'
    )
    for row, name in zip(grid, names, strict=True):
        for axes, (title, found) in zip(row, stages.items(), strict=True):
            _draw(axes, found[name])
            axes.set_title(f'{title}\n{name}', fontsize=7)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, format='png')
    return path


def _check(stages: Mapping[str, Distributions], names: list[str]) -> None:
    """Refuse stages that cannot be drawn side by side."""
    if not stages or not names:
        raise ValueError(
            f'{len(stages)} stages and {len(names)} attentions: give at '
            'least one of each'
        )
    for title, found in stages.items():
        missing = [name for name in names if name not in found]
        if missing:
            raise ValueError(
                f'stage {title!r} has no attention {missing[0]!r}; it has '
                f'{sorted(found)}'
            )


def _draw(axes: Axes, distribution: Mapping[str, Any]) -> None:
    """Draw one histogram."""
    histogram = distribution['histogram']
    positions = distribution['peaks']['positions']
    axes.stairs(
        histogram['density'], histogram['edges'], fill=True, color='0.6'
    )
    for position in positions:
        axes.axvline(position, color='tab:red', linestyle='--', linewidth=1)
    low, high = distribution['range']
    axes.set_xlabel(
        f'key in [{low:.2g}, {high:.2g}], peaks: {len(positions)}',
        fontsize=7,
    )
    axes.tick_params(labelsize=6)
    axes.set_yticks([])


def plot_intra_head(
    probe: Mapping[str, Mapping[str, Any]],
    path: str | Path,
    *,
    unit: str = 'mean distance',
) -> Path:
    """Draw two bars per head: noise on its foreground, and elsewhere.

    Heads without both regions have no bars.

    Args:
        probe: Result of ``analysis.head_noise.probe_intra_head``.
        path: PNG file; its folder is made.
        unit: Label of the value axis.

    Returns:
        The path.

    Raises:
        ValueError: If there is no head.
    """
    return _plot_bars(
        probe,
        {'foreground': 'tab:red', 'background': '0.6'},
        path,
        unit=unit,
    )


def plot_inter_head(
    sensitivities: Mapping[str, Mapping[str, float]],
    path: str | Path,
    *,
    unit: str = 'mean distance',
) -> Path:
    """Draw how much each head's quantization error distorts predictions.

    Args:
        sensitivities: Result of ``analysis.head_noise.measure_inter_head``.
        path: PNG file; its folder is made.
        unit: Label of the value axis.

    Returns:
        The path.

    Raises:
        ValueError: If there is no head.
    """
    return _plot_bars(
        sensitivities,
        {'swap_in': 'tab:blue', 'leave_one_out': 'tab:orange'},
        path,
        unit=unit,
    )


def _plot_bars(
    values: Mapping[str, Mapping[str, Any]],
    colors: Mapping[str, str],
    path: str | Path,
    *,
    unit: str,
) -> Path:
    """Draw a group of bars per name, one bar per color."""
    from matplotlib.figure import Figure

    if not values:
        raise ValueError('0 heads: give at least one to draw')
    figure = Figure(
        figsize=(1.2 + 1.1 * len(values), 2.8), layout='constrained'
    )
    axes = figure.subplots()
    width = 0.8 / len(colors)
    for place, (key, color) in enumerate(colors.items()):
        axes.bar(
            [i + place * width for i in range(len(values))],
            [found.get(key) or 0.0 for found in values.values()],
            width=width,
            align='edge',
            color=color,
            label=key.replace('_', ' '),
        )
    axes.set_xticks([i + 0.4 for i in range(len(values))], list(values))
    axes.set_ylabel(unit)
    axes.legend(fontsize=7)
    return _save(figure, path)


def plot_foreground(
    maps: Mapping[str, Any],
    path: str | Path,
    *,
    image: Any = None,
) -> Path:
    """Draw foreground weights as heat maps, side by side.

    Args:
        maps: Title -> weights in [0, 1], (H, W).
        path: PNG file; its folder is made.
        image: (H, W, 3) uint8 of any size, drawn first and below each map.

    Returns:
        The path.

    Raises:
        ValueError: If there is no map.
    """
    from matplotlib.figure import Figure

    if not maps:
        raise ValueError('0 maps: give at least one to draw')
    titles = ([] if image is None else ['image']) + list(maps)
    figure = Figure(figsize=(4.0 * len(titles), 2.2), layout='constrained')
    grid = figure.subplots(1, len(titles), squeeze=False)[0]
    for axes, title in zip(grid, titles, strict=True):
        axes.set_title(title, fontsize=8)
        axes.set_axis_off()
        if image is not None:
            height, width = image.shape[:2]
            axes.imshow(image, extent=(0, width, height, 0))
        if title in maps:
            weights = maps[title]
            height, width = (weights if image is None else image).shape[:2]
            axes.imshow(
                weights,
                extent=(0, width, height, 0),
                cmap='inferno',
                vmin=0,
                vmax=1,
                alpha=1.0 if image is None else 0.7,
            )
    return _save(figure, path)


def _save(figure: Any, path: str | Path) -> Path:
    """Write a figure as PNG, making its folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, format='png')
    return path
