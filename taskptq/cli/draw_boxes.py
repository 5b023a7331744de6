"""Draw boxes: ground truth, of the float model and of quantized ones.

    python tools/draw_boxes.py TABLE.table.yml --rows w4a4-8_mse w4a4-8_drd
        --boxes boxes.png [--images 3] [--score 0.5]

``TABLE`` names a detector of mmdet, its data and its recipes; a row is
``<bits>_<method>``. Images are those that the table evaluates, spaced evenly,
not chosen by result; a color is a class.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Waiting threads sleep: two that spin beside a busy process slow each other
# down many times over. torch reads it when it is loaded.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor, nn

from taskptq.analysis.bars import save
from taskptq.bench.pictures import chosen_batches, outline, picture_of, predict
from taskptq.bench.row_models import open_measurement, quantized_copy, row_of
from taskptq.bench.table import read_table
from taskptq.cli.numbers import count, seed, share

SCORE = 0.5
TRUTH = 'ground truth'
# Height of a picture, in inches.
HEIGHT = 2.4
# Up to so many classes are all named; of more, those that were drawn.
MAX_CLASSES = 10


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.
    """
    parser = argparse.ArgumentParser(description='Draw boxes')
    parser.add_argument('table', help='file *.table.yml')
    parser.add_argument(
        '--rows',
        nargs='+',
        required=True,
        help='<bits>_<method>, e.g. w4a4-8_mse',
    )
    parser.add_argument('--boxes', type=Path, required=True, help='PNG file')
    parser.add_argument('--images', type=count, default=3)
    parser.add_argument(
        '--score',
        type=share,
        default=SCORE,
        help='draw boxes with more confidence',
    )
    parser.add_argument('--seed', type=seed, default=0)
    parser.add_argument(
        '--reuse',
        action='store_true',
        help='take models of equal recipes '
        'from an earlier run on the same float checkpoint',
    )
    parser.add_argument(
        '--device', help='cpu or cuda (default: a GPU if there is one)'
    )
    return parser.parse_args(argv)


def color_of(label: int) -> Any:
    """Return the color of a class; there are twenty, which repeat."""
    palette = colormaps['tab10' if label < 10 else 'tab20']
    return palette(label % palette.N)


def draw_boxes(
    models: Mapping[str, nn.Module],
    batches: Sequence[dict[str, Any]],
    path: Path,
    *,
    classes: Sequence[str],
    score: float = SCORE,
) -> None:
    """Draw a row for each image; columns are the truth and each model.

    Args:
        models: By title.
        batches: Of one image each.
        path: PNG file.
        classes: Names of the labels.
        score: Least confidence, exclusive.
    """
    pictures = [picture_of(batch) for batch in batches]
    height, width = pictures[0][0].shape[:2]
    figure = Figure(
        figsize=(
            HEIGHT * width / height * (1 + len(models)),
            (HEIGHT + 0.3) * len(batches) + 0.4,
        ),
        layout='constrained',
    )
    grid = figure.subplots(len(batches), 1 + len(models), squeeze=False)
    drawn: set[int] = set()
    for row, batch, (image, boxes, labels) in zip(
        grid, batches, pictures, strict=True
    ):
        found = {TRUTH: (boxes, labels)}
        found |= {
            title: predict(model, batch, score=score)
            for title, model in models.items()
        }
        for axes, (title, (boxes, labels)) in zip(
            row, found.items(), strict=True
        ):
            draw_image(axes, image, boxes, labels)
            axes.set_title(f'{title}: {len(boxes)} boxes', fontsize=8)
            drawn.update(labels.tolist())
    add_legend(figure, classes, drawn)
    save(figure, path)


def draw_image(axes: Any, image: Any, boxes: Tensor, labels: Tensor) -> None:
    """Draw an image with its boxes.

    Args:
        axes: matplotlib's.
        image: (H, W, 3), RGB.
        boxes: (N, 4) in pixels of the image.
        labels: (N,).
    """
    axes.imshow(image)
    for box, label in zip(boxes, labels.tolist(), strict=True):
        outline(axes, box, color=color_of(label))
    axes.set_xlim(-0.5, image.shape[1] - 0.5)
    axes.set_ylim(image.shape[0] - 0.5, -0.5)
    axes.set_axis_off()


def add_legend(
    figure: Figure, classes: Sequence[str], drawn: set[int]
) -> None:
    """Name the classes below the pictures."""
    labels = (
        range(len(classes)) if len(classes) <= MAX_CLASSES else sorted(drawn)
    )
    handles = [
        Patch(
            facecolor='none', edgecolor=color_of(label), label=classes[label]
        )
        for label in labels
    ]
    if handles:
        figure.legend(
            handles=handles,
            loc='outside lower center',
            ncols=min(len(handles), MAX_CLASSES),
            fontsize=8,
        )


def main(argv: list[str] | None = None) -> None:
    """Draw.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.

    Raises:
        SystemExit: If a file is missing or an argument is impossible.
    """
    args = parse_args(argv)
    try:
        table = read_table(args.table)
        rows = {
            name: row_of(table, name, seed=args.seed) for name in args.rows
        }
        measurement = open_measurement(table, device=args.device)
        dataset = measurement.loop.dataloader.dataset
        batches = chosen_batches(dataset, count=args.images)
        models = {'float': measurement.model}
        for name, row in rows.items():
            models[name] = quantized_copy(measurement, row, reuse=args.reuse)
        draw_boxes(
            models,
            batches,
            args.boxes,
            score=args.score,
            classes=dataset.metainfo['classes'],
        )
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error
    print(f'written: {args.boxes}')


if __name__ == '__main__':
    main()
