"""Picture of small files: size against metric, one panel for each model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskptq.analysis.bars import COLORS, MARKERS

if TYPE_CHECKING:
    from taskptq.bench.size_page import Point

__all__ = ['draw_sizes', 'front']

# Below this share of the float metric, files are of no use.
LEAST_SHARE = 0.7
PANEL = (3.6, 3.0)  # inches
# The same bytes for the same rows.
SALT = 'taskptq'


def front(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other one beats in size and metric.

    Args:
        points: Of one model.
    """
    best = float('-inf')
    kept = []
    for point in sorted(points, key=lambda one: (-one.ratio, -one.share)):
        if point.share > best:
            best = point.share
            kept.append(point)
    return kept


def draw_sizes(models: Mapping[str, Sequence[Point]], path: Path) -> Path:
    """Draw each model's metric over how many times smaller its files are.

    A grey line joins the files that no other one beats. Files that keep
    less than 70 % lie on the lower edge.

    Args:
        models: Title -> points.
        path: SVG file; its folder is made.
    """
    import matplotlib
    from matplotlib.figure import Figure

    names = sorted({p.series for points in models.values() for p in points})
    figure = Figure(
        figsize=(PANEL[0] * max(1, len(models)), PANEL[1] + 0.4),
        layout='constrained',
    )
    panels: Any = figure.subplots(1, max(1, len(models)), squeeze=False)[0]
    for axes, (title, points) in zip(panels, models.items(), strict=False):
        _draw_panel(axes, title, points, names=names)
    handles = panels[0].get_legend_handles_labels()
    figure.legend(*handles, loc='outside lower center', ncols=5, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({'svg.hashsalt': SALT, 'svg.fonttype': 'none'}):
        figure.savefig(path, format='svg', metadata={'Date': None})
    return path


def _draw_panel(
    axes: Any, title: str, points: Sequence[Point], *, names: Sequence[str]
) -> None:
    useful = [point for point in points if point.share >= LEAST_SHARE]
    best = front(useful)
    axes.plot(
        [point.ratio for point in best],
        [point.share for point in best],
        color='0.8',
        zorder=1,
    )
    for number, name in enumerate(names):
        own = [point for point in points if point.series == name]
        axes.scatter(
            [point.ratio for point in own],
            [max(point.share, LEAST_SHARE) for point in own],
            s=18,
            color=COLORS[number % len(COLORS)],
            marker=MARKERS[number % len(MARKERS)],
            label=name,
            zorder=2,
        )
    axes.axhline(1, color='0.6', linestyle=':', linewidth=1)
    axes.set_title(title, fontsize=9)
    axes.set(
        xscale='log',
        ylim=(LEAST_SHARE - 0.01, 1.03),
        xlabel='times smaller than float32',
        ylabel='share of the float metric',
    )
    ticks = (4, 8, 16, 32)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
