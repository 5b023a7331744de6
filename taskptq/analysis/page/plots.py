"""Plots as SVG text for the page: they take its fonts and colors.

matplotlib draws in placeholder colors, which become the page's CSS variables,
so one plot serves the light and the dark page.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ['plot_noise', 'plot_tensor']

INK, FIRST, SECOND, MUTED, BAD = (f'#0a0b0{n}' for n in range(5))
VARIABLES = {
    INK: 'var(--ink)',
    FIRST: 'var(--first)',
    SECOND: 'var(--second)',
    MUTED: 'var(--muted)',
    BAD: 'var(--bad)',
}
SETTINGS = {
    'svg.fonttype': 'none',
    'svg.hashsalt': 'taskptq',
    # Names of layers are no formulas.
    'text.parse_math': False,
    'font.size': 9,
    'text.color': INK,
    'axes.edgecolor': MUTED,
    'axes.labelcolor': INK,
    'xtick.color': MUTED,
    'ytick.color': MUTED,
    'xtick.labelcolor': INK,
    'ytick.labelcolor': INK,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'legend.frameon': False,
}
# Grids with more levels than this are drawn as an area, not line by line.
MAX_LINES = 32


def _styled(plot: Callable[[Any], str]) -> Callable[[Any], str]:
    """Let a plot draw in the page's style."""

    @functools.wraps(plot)
    def styled(content: Any) -> str:
        from matplotlib import rc_context

        with rc_context(SETTINGS):
            return plot(content)

    return styled


@_styled
def plot_noise(layers: Sequence[Mapping[str, Any]]) -> str:
    """Draw the signal to noise of each layer, in the model's order.

    Args:
        layers: See ``noise.LayerNoise.to_dict``.

    Returns:
        An ``<svg>`` element.
    """
    figure, axes = _figure(9.0, 3.0)
    for key, color, label in (
        ('own_db', FIRST, 'this layer alone is quantized'),
        ('output_db', SECOND, 'inside the quantized model'),
    ):
        places = [i for i, one in enumerate(layers) if one[key] is not None]
        values = [layers[i][key] for i in places]
        axes.plot(
            places,
            values,
            color=color,
            linewidth=0.8,
            marker='o',
            markersize=3,
            label=label,
        )
    axes.set_xlabel('layer, in the order of the model')
    axes.set_ylabel('signal to noise, dB')
    axes.set_xlim(-1, len(layers))
    axes.grid(axis='y', color=MUTED, alpha=0.3, linewidth=0.5)
    _mark_parts(axes, [str(one['part']) for one in layers])
    if layers:
        figure.legend(loc='outside lower center', ncols=2, fontsize=8)
    return _svg(figure, 'Signal to noise of each layer')


def _mark_parts(axes: Axes, parts: Sequence[str]) -> None:
    """Name the parts of the model above the axes, with lines between."""
    for index, part in enumerate(parts):
        if index and parts[index - 1] == part:
            continue
        if index:
            axes.axvline(index - 0.5, color=MUTED, linewidth=0.6)
        if parts.count(part) > len(parts) / 40:
            axes.annotate(
                part,
                (index - 0.3, 1.01),
                xycoords=('data', 'axes fraction'),
                fontsize=8,
                va='bottom',
            )


@_styled
def plot_tensor(shape: Mapping[str, Any]) -> str:
    """Draw how many values fall on each part of a grid.

    The grid is shaded, values outside of it are clipped to its ends; the
    axis of counts is logarithmic, so that outliers show.

    Args:
        shape: See ``tensors.TensorShape.to_dict``.

    Returns:
        An ``<svg>`` element.
    """
    figure, axes = _figure(3.6, 1.9)
    counts, low, high = shape['counts'], shape['low'], shape['high']
    total = max(1.0, sum(counts))
    step = (high - low) / max(1, len(counts))
    edges = [low + index * step for index in range(len(counts) + 1)]
    first, last = shape['quant_min'], shape['quant_max']
    axes.axvspan(first - 0.5, last + 0.5, color=MUTED, alpha=0.15, lw=0)
    if last - first < MAX_LINES:
        for code in range(first, last + 1):
            axes.axvline(code, color=MUTED, linewidth=0.4)
    axes.stairs(
        [count / total for count in counts], edges, fill=True, color=FIRST
    )
    axes.set_yscale('log')
    axes.set_ylim(1e-6, 1)
    axes.set_yticks([1e-6, 1e-4, 1e-2, 1], ['10⁻⁶', '10⁻⁴', '1 %', '1'])
    axes.minorticks_off()
    axes.set_xlim(low, high)
    axes.set_xlabel('code of the grid')
    axes.set_ylabel('share')
    for limit, reached in ((low, shape['least']), (high, shape['greatest'])):
        if (reached < low) if limit == low else (reached > high):
            _mark_beyond(axes, limit == low, reached)
    return _svg(figure, f'Values of {shape["name"]} on its grid')


def _mark_beyond(axes: Axes, is_left: bool, reached: float) -> None:
    """Say how far values go that lie outside of the plot."""
    axes.annotate(
        f'← to {reached:.0f}' if is_left else f'to {reached:.0f} →',
        (0.01 if is_left else 0.99, 0.9),
        xycoords='axes fraction',
        ha='left' if is_left else 'right',
        color=BAD,
        fontsize=8,
    )


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure of the page's style; its size is in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout='constrained')
    figure.patch.set_alpha(0)
    axes = figure.subplots()
    axes.patch.set_alpha(0)
    return figure, axes


def _svg(figure: Figure, title: str) -> str:
    """Return a figure as an element of an HTML page."""
    from markupsafe import escape

    stream = io.StringIO()
    figure.savefig(stream, format='svg', metadata={'Date': None})
    text = stream.getvalue()
    text = text[text.index('<svg') :]
    # Its style sheet would apply to the whole page.
    for part in ('metadata', 'style type="text/css"'):
        end = part.partition(' ')[0]
        text = re.sub(f'<{part}>.*?</{end}>', '', text, flags=re.S)
    text = re.sub(r' (?:width|height)="[\d.]+pt"', '', text, count=2)
    used = set(re.findall(r'(?:#|url\(#)([\w-]+)', text))
    text = re.sub(
        r' id="([\w.-]+)"',
        lambda found: found[0] if found[1] in used else '',
        text,
    )
    # The page names fonts; a size in pixels stays readable at any width.
    text = re.sub(r'font: ([\d.]+)px [^;"]*', r'font-size: \1px', text)
    for color, variable in VARIABLES.items():
        text = text.replace(color, variable)
    label = f'role="img" aria-label="{escape(title)}"'
    return text.replace('<svg ', f'<svg {label} ', 1)
