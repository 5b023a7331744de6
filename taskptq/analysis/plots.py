"""Pictures of what the analysis found."""
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

    Peaks are marked by dashed lines. A row shares its value axis, so that
    the ranges of the stages compare.

    Args:
        stages: Title of a stage (e.g. 'float', 'centered') -> what
            ``analysis.distribution.key_distributions`` returned for it.
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
