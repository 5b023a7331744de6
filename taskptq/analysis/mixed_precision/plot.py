"""Picture of the front."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ['plot_front']


def plot_front(report: Mapping[str, Any], path: str | Path) -> Path:
    """Draw estimated loss over cost, with what was tried and uniform bits.

    Args:
        report: ``front``, ``tried`` and ``allowed`` of the report of a
            choice.
        path: PNG file; its folder is made.

    Returns:
        The path.
    """
    from matplotlib.figure import Figure

    front = report['front']
    figure = Figure(figsize=(5.0, 3.4), layout='constrained')
    axes = figure.subplots()
    costs = [point['cost'] for point in front['points']]
    losses = [_shown(point['loss']) for point in front['points']]
    axes.plot(costs, losses, '.-', color='0.4', label='front (estimated)')
    for point in front['others']:
        axes.plot(point['cost'], _shown(point['loss']), 'x', color='tab:blue')
        axes.annotate(
            point['origin'],
            (point['cost'], _shown(point['loss'])),
            fontsize=7,
            textcoords='offset points',
            xytext=(4, 2),
        )
    for number, trial in enumerate(report['tried']):
        axes.plot(
            trial['cost'],
            _shown(trial['measured_loss']),
            'o',
            color='tab:red',
            label='tried (measured)' if number == 0 else None,
        )
    axes.axhline(report['allowed'], color='0.7', linestyle='--', linewidth=1)
    axes.set_yscale('log')
    axes.set_xlabel(f'{front["cost"]} ({front["unit"]})', fontsize=8)
    axes.set_ylabel('output loss', fontsize=8)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=7, frameon=False)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, format='png')
    return path


def _shown(loss: float) -> float:
    """Keep a loss of 0 on a logarithmic axis."""
    return max(loss, 1e-9)
