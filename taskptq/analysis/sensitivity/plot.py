"""Picture of a sensitivity analysis: the worst tensors, and the roles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from taskptq.analysis.bars import COLORS
from taskptq.analysis.sensitivity.record import (
    PointSensitivity,
    SensitivityReport,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ['plot_sensitivity']

MOST_POINTS = 30
# Losses below this share of the largest are drawn at it.
LEAST_SHARE = 1e-6
NAME_LENGTH = 48


def plot_sensitivity(
    report: SensitivityReport,
    path: str | Path,
    *,
    most: int = MOST_POINTS,
) -> Path:
    """Draw the losses of the worst tensors as bars, and below the roles.

    Args:
        report: What to draw.
        path: PNG or SVG file, by its suffix; its folder is made.
        most: Tensors to draw at most.

    Returns:
        The path.

    Raises:
        ValueError: If there is no point.
    """
    from matplotlib.figure import Figure

    points = report.sorted()[:most]
    if not points:
        raise ValueError('0 tensors: give a report with at least one')
    rows = [len(points), len(report.roles)]
    panels = 2 if report.roles else 1
    figure = Figure(
        figsize=(7.0, 1.2 + 0.17 * sum(rows) + 0.5 * panels),
        layout='constrained',
    )
    axes = figure.subplots(
        panels,
        1,
        squeeze=False,
        height_ratios=[max(2, n) for n in rows][:panels],
    )[:, 0]
    _draw_points(axes[0], points)
    if report.roles:
        _draw_roles(axes[1], report)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path


def _draw_points(axes: Axes, points: Sequence[PointSensitivity]) -> None:
    least = max(points[0].loss, 1e-30) * LEAST_SHARE
    roles = list(dict.fromkeys(point.role for point in points))
    for number, role in enumerate(roles):
        mine = [i for i, point in enumerate(points) if point.role == role]
        axes.barh(
            mine,
            [max(points[i].loss, least) for i in mine],
            color=COLORS[number % len(COLORS)],
            label=role,
        )
    names = [_short(point.name) for point in points]
    axes.margins(y=0.01)
    axes.set_yticks(range(len(points)), names, fontsize=6)
    axes.set_xscale('log')
    axes.set_xlabel('output loss of one tensor', fontsize=8)
    axes.tick_params(axis='x', labelsize=7)
    axes.invert_yaxis()
    axes.legend(fontsize=7, frameon=False, loc='lower right')


def _draw_roles(axes: Axes, report: SensitivityReport) -> None:
    places = range(len(report.roles))
    shares = [
        0.0 if report.total <= 0 else 1 - role.others / report.total
        for role in report.roles
    ]
    names = [f'{role.role} ({role.num_points})' for role in report.roles]
    axes.barh(places, [100 * max(0.0, s) for s in shares], color='0.5')
    axes.set_yticks(places, names, fontsize=7)
    axes.set_xlim(0, 100)
    axes.set_xlabel('% of the loss that comes back with it float', fontsize=8)
    axes.tick_params(axis='x', labelsize=7)
    axes.invert_yaxis()


def _short(name: str) -> str:
    """Shorten a quantizer's name from the front.

    >>> _short('neck.0.conv.input_quantizer')
    'neck.0.conv.input'
    """
    name = name.removesuffix('_quantizer')
    return (
        name if len(name) <= NAME_LENGTH else f'...{name[3 - NAME_LENGTH :]}'
    )
