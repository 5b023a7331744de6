"""Masks of several models on the same images, in one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ['colors', 'draw_masks', 'overlay']

OPACITY = 0.45
GOLDEN = 0.618034


def colors(count: int) -> np.ndarray:
    """Return distinct colors (count, 3) in [0, 1]; color i never changes."""
    from matplotlib.colors import hsv_to_rgb

    hue = (np.arange(count) * GOLDEN) % 1.0
    return hsv_to_rgb(
        np.stack([hue, np.full(count, 0.9), np.full(count, 1.0)], axis=-1)
    )


def overlay(image: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Draw masks onto an image: tinted, with a full-color outline.

    Args:
        image: (H, W, 3), RGB, uint8.
        masks: (N, H, W), bool; mask i always has the same color.

    Returns:
        (H, W, 3), uint8.
    """
    canvas = image.astype(np.float32) / 255
    for mask, color in zip(masks, colors(len(masks)), strict=True):
        canvas[mask] = (1 - OPACITY) * canvas[mask] + OPACITY * color
    for mask, color in zip(masks, colors(len(masks)), strict=True):
        canvas[outline(mask)] = color
    return (canvas.clip(0, 1) * 255).round().astype(np.uint8)


def outline(mask: np.ndarray) -> np.ndarray:
    """Return a mask's pixels that have a neighbor outside, (H, W)."""
    padded = np.pad(mask, 1)
    inner = (
        padded[:-2, 1:-1]
        & padded[2:, 1:-1]
        & padded[1:-1, :-2]
        & padded[1:-1, 2:]
    )
    return mask & ~inner


def draw_masks(
    images: Sequence[np.ndarray],
    masks: Mapping[str, Sequence[np.ndarray]],
    out: str | Path,
    *,
    captions: Mapping[str, Sequence[str]] | None = None,
    tile_inches: float = 2.6,
) -> None:
    """Draw one row for each image and one column for each model.

    Args:
        images: (H, W, 3) each, RGB, uint8.
        masks: Name of the model -> masks (N, H, W) of each image. The first
            N objects are the same ones in every column.
        out: PNG file to write.
        captions: Name of the model -> a line below each of its pictures.
        tile_inches: Side of one picture in inches.

    Raises:
        ValueError: If a model does not have one entry per image.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    for name, found in masks.items():
        if len(found) != len(images):
            raise ValueError(
                f'masks[{name!r}] has {len(found)} entries for {len(images)} '
                'images: give one for each'
            )
    columns = 1 + len(masks)
    figure = Figure(
        figsize=(tile_inches * columns, tile_inches * len(images)),
        layout='constrained',
    )
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(images), columns, squeeze=False)
    for row, image in enumerate(images):
        show(axes[row][0], image, title='image' if row == 0 else '')
        for column, (name, found) in enumerate(masks.items(), start=1):
            caption = (captions or {}).get(name)
            show(
                axes[row][column],
                overlay(image, found[row]),
                title=name if row == 0 else '',
                caption=caption[row] if caption else '',
            )
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=150)


def show(
    axis: Any, image: np.ndarray, *, title: str, caption: str = ''
) -> None:
    """Draw one picture."""
    axis.imshow(image, interpolation='nearest')
    axis.set_title(title, fontsize=9)
    axis.set_xlabel(caption, fontsize=8)
    axis.set_xticks([])
    axis.set_yticks([])
