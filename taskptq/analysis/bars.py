"""Pictures of grid heads: errors against the formula, grid distributions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

COLORS = (
    'tab:blue',
    'tab:orange',
    'tab:green',
    'tab:red',
    'tab:purple',
    'tab:brown',
)
# Changes with each cycle through the colors.
MARKERS = ('o', '^', 's', 'x')
COORDINATES = ('x', 'y', 'w', 'h')


def plot_error_scatter(
    results: Mapping[str, Mapping[str, Any]],
    path: str | Path,
    *,
    unit: str = 'unit of the coordinate',
) -> Path:
    """Draw measured over predicted errors, one dot per bin.

    The formula holds on the dashed diagonal. Both axes are logarithmic.

    Args:
        results: Title -> result of ``grid_error.summarize``.
        path: PNG file; its folder is made.
        unit: Unit of both axes.

    Returns:
        The path.

    Raises:
        ValueError: If there is nothing to draw.
    """
    from matplotlib.figure import Figure

    ends = [
        value
        for found in results.values()
        for one in found['bins']
        for value in (one['predicted'], one['measured'])
        if value > 0
    ]
    if not ends:
        raise ValueError('0 bins with an error: give at least one to draw')
    figure = Figure(figsize=(5.8, 3.8), layout='constrained')
    axes = figure.subplots()
    span = [min(ends) / 1.5, max(ends) * 1.5]
    axes.plot(span, span, color='0.6', linestyle='--', linewidth=1)
    for number, (title, found) in enumerate(results.items()):
        axes.scatter(
            [one['predicted'] for one in found['bins']],
            [one['measured'] for one in found['bins']],
            s=14,
            color=COLORS[number % len(COLORS)],
            marker=MARKERS[number // len(COLORS) % len(MARKERS)],
            label=title,
        )
    axes.set(
        xscale='log',
        yscale='log',
        xlim=span,
        ylim=span,
        xlabel=f'predicted rms error, {unit}',
        ylabel=f'measured rms error, {unit}',
    )
    axes.legend(fontsize=7, loc='upper left', bbox_to_anchor=(1.0, 1.0))
    return save(figure, path)


def draw_distribution(
    axes: Any,
    points: Sequence[float],
    probabilities: Mapping[str, Sequence[float]],
    *,
    title: str = '',
) -> None:
    """Draw distributions on one grid into existing axes, as side-by-side bars.

    The points are drawn evenly spaced and labeled by their values; a dashed
    line marks each expectation.

    Args:
        axes: matplotlib's axes.
        points: Points of the grid, (n + 1,).
        probabilities: Title -> (n + 1,).
        title: Title of the axes.
    """
    places = list(range(len(points)))
    width = 0.8 / max(1, len(probabilities))
    for number, (name, values) in enumerate(probabilities.items()):
        color = COLORS[number % len(COLORS)]
        axes.bar(
            [place + (number + 0.5) * width - 0.4 for place in places],
            list(values),
            width=width,
            color=color,
            label=name,
        )
        mean = sum(p * y for p, y in zip(values, points, strict=True))
        axes.axvline(
            _place_of(mean, points), color=color, linestyle='--', linewidth=1
        )
    # More than nine labels would overlap.
    shown = slice(None, None, -(-len(points) // 9))
    axes.set_xticks(places[shown], [f'{point:.2g}' for point in points[shown]])
    axes.tick_params(labelsize=6)
    axes.set_ylim(0, 1)
    axes.set_title(title, fontsize=8)


def plot_distributions(
    boxes: Sequence[Mapping[str, Sequence[Sequence[float]]]],
    path: str | Path,
    *,
    points: Sequence[float],
    titles: Sequence[str] | None = None,
    coordinates: Sequence[str] = COORDINATES,
) -> Path:
    """Draw a row for each box and a column for each coordinate.

    Args:
        boxes: For each box, model -> probabilities (4, n + 1).
        path: PNG file; its folder is made.
        points: Points of the grid.
        titles: Titles of the boxes.
        coordinates: Names of the four.

    Returns:
        The path.

    Raises:
        ValueError: If there is no box.
    """
    from matplotlib.figure import Figure

    if not boxes:
        raise ValueError('0 boxes: give at least one to draw')
    figure = Figure(figsize=(11, 1.9 * len(boxes) + 0.3), layout='constrained')
    grid = figure.subplots(len(boxes), 4, squeeze=False)
    for number, (row, box) in enumerate(zip(grid, boxes, strict=True)):
        for index, (axes, name) in enumerate(
            zip(row, coordinates, strict=True)
        ):
            head = titles[number] if titles and index == 0 else ''
            draw_distribution(
                axes,
                points,
                {m: rows[index] for m, rows in box.items()},
                title=f'{head} {name}'.strip(),
            )
    grid[0][0].legend(fontsize=6)
    return save(figure, path)


def save(figure: Any, path: str | Path) -> Path:
    """Write a figure as PNG, making its folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, format='png')
    return path


def _place_of(value: float, points: Sequence[float]) -> float:
    """Return a value's position on an axis of evenly drawn points."""
    for index in range(len(points) - 1):
        low, high = points[index], points[index + 1]
        if value <= high:
            return index + max(0.0, (value - low) / (high - low))
    return float(len(points) - 1)
