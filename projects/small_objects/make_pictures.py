"""Draw small boxes of a float model and of quantized ones, and their grids.

    python make_pictures.py TABLE.table.yml --rows w4a4_mse ...
        --boxes boxes.png [--grids grids.png]

``TABLE`` names the float model; a row is a recipe of its methods. Boxes are
of images that the table evaluates, chosen evenly; each picture is cropped to
where the nuclei are. ``--grids`` shows the distributions of the same regions
in all models, before and after quantization.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Waiting threads sleep: spinning ones slow each other down many times over on
# a busy machine. torch reads this when it is loaded.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from small_objects.grid_data import grid_of, head_of, load_float
from taskptq.analysis.bars import plot_distributions, save
from taskptq.apis import quantize
from taskptq.bench.pictures import chosen_batches, outline, picture_of, predict
from taskptq.bench.table import Table, read_table
from taskptq.cli.numbers import count, seed
from taskptq.engine.builder import build_adapter
from taskptq.engine.calibration_data import EvaluationSource

SCORE = 0.5
TRUTH = 'lime'
FOUND = 'red'
SIDES = ('left', 'top', 'right', 'bottom')
DELTAS = ('x', 'y', 'w', 'h')


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.
    """
    parser = argparse.ArgumentParser(description='Draw small objects')
    parser.add_argument('table', help='file *.table.yml')
    parser.add_argument(
        '--rows',
        nargs='+',
        required=True,
        help='recipes <bits>_<method>, e.g. w4a4_mse',
    )
    parser.add_argument('--boxes', type=Path, required=True, help='PNG file')
    parser.add_argument('--grids', type=Path, help='PNG file')
    parser.add_argument('--images', type=count, default=3)
    parser.add_argument(
        '--regions',
        type=count,
        default=4,
        help='boxes whose distributions are drawn',
    )
    parser.add_argument(
        '--crop',
        type=count,
        default=128,
        help='side of a picture in pixels of the image',
    )
    parser.add_argument('--seed', type=seed, default=0)
    return parser.parse_args(argv)


def models_of(
    table: Table, rows: Sequence[str], *, seed: int
) -> tuple[Any, dict[str, nn.Module]]:
    """Build the float model and its quantized copies.

    Args:
        table: The table.
        rows: Recipes.
        seed: Seed of the calibration images.

    Returns:
        The config, and the models by title.
    """
    cfg, model = load_float(table.config, table.checkpoint)
    models = {'float': model}
    for row in rows:
        bits, _, method = row.partition('_')
        changes = Path('work_dirs') / 'small_objects' / table.name / row
        quant, _ = quantize(
            table.config,
            table.checkpoint,
            recipe=table.recipe_name(bits, method=method),
            seed=seed,
            calibration=dict(table.calibration),
            work_dir=changes,
        )
        models[row] = quant
    return cfg, models


def crop_around(
    boxes: Tensor, shape: Sequence[int], side: int
) -> tuple[int, int]:
    """Return the corner of the crop that holds most box centers.

    Args:
        boxes: (G, 4) in pixels of the image.
        shape: Height and width of the image.
        side: Side of the crop in pixels.
    """
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    limit = torch.tensor([max(0, shape[1] - side), max(0, shape[0] - side)])
    corners = (centers - side / 2).clamp(min=0).minimum(limit.to(centers))
    inside = (
        (centers[None] >= corners[:, None])
        & (centers[None] <= corners[:, None] + side)
    ).all(dim=-1)
    best = corners[inside.sum(dim=1).argmax()]
    return int(best[0]), int(best[1])


def draw_boxes(
    models: Mapping[str, nn.Module],
    batches: Sequence[dict[str, Any]],
    path: Path,
    *,
    side: int,
) -> None:
    """Draw a row for each image and a column for each model.

    Args:
        models: Title -> model.
        batches: Batches of one image.
        path: PNG file.
        side: Side of a picture in pixels of the image.
    """
    figure = Figure(
        figsize=(2.4 * len(models), 2.5 * len(batches)), layout='constrained'
    )
    grid = figure.subplots(len(batches), len(models), squeeze=False)
    for row, batch in zip(grid, batches, strict=True):
        image, truth, _ = picture_of(batch)
        left, top = crop_around(truth, image.shape[:2], side)
        for axes, (title, model) in zip(row, models.items(), strict=True):
            found, _ = predict(model, batch, score=SCORE)
            axes.imshow(image[top : top + side, left : left + side])
            for box in truth:
                outline(axes, box, corner=(left, top), color=TRUTH)
            for box in found:
                outline(axes, box, corner=(left, top), color=FOUND)
            axes.set_xlim(-0.5, side - 0.5)
            axes.set_ylim(side - 0.5, -0.5)
            axes.set_axis_off()
            axes.set_title(f'{title}: {len(found)} boxes', fontsize=8)
    save(figure, path)


@torch.no_grad()
def distributions(
    models: Mapping[str, nn.Module], batch: dict[str, Any], *, count: int
) -> tuple[list[dict[str, Any]], Any, bool]:
    """Compare distributions of the float model's most confident regions.

    Args:
        models: Title -> model, the float one first.
        batch: Batch of one image.
        count: Number of regions.

    Returns:
        For each region, title -> probabilities (4, n + 1); the grid; and
        whether the coordinates are sides.

    Raises:
        ValueError: If the model has no grid head.
    """
    first = next(iter(models.values()))
    adapter = build_adapter(first)
    heads = adapter.forward_heads(first, batch)
    boxes = adapter.box_distributions(heads)
    name = 'box' if 'box' in boxes else next(iter(boxes), None)
    if name is None:
        raise ValueError('the model has no grid head: omit --grids')
    weight = adapter.foreground_proxy(heads)[name].expand_as(heads[name])
    sure = adapter.box_distributions({name: weight})[name][..., 0, 0]
    order = sure.flatten().argsort(descending=True)[:count]
    run = getattr(adapter, 'forward_like', None)
    shown: list[dict[str, Any]] = [{} for _ in order]
    for title, model in models.items():
        outputs = (
            adapter.forward_heads(model, batch)
            if run is None
            else run(model, batch, heads=heads)
        )
        p = adapter.box_distributions(outputs)[name].flatten(0, -3)[order]
        for region, values in zip(
            shown, p.float().softmax(-1).tolist(), strict=True
        ):
            region[title] = values
    grid = grid_of(head_of(first, name))
    return shown, grid, bool(grid.one_sided)


def main(argv: list[str] | None = None) -> None:
    """Draw.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.

    Raises:
        SystemExit: If a file is missing or the model has no grid.
    """
    args = parse_args(argv)
    try:
        table = read_table(args.table)
        cfg, models = models_of(table, args.rows, seed=args.seed)
        source = EvaluationSource.from_config(cfg.test_dataloader)
        batches = chosen_batches(source.dataset, count=args.images)
        draw_boxes(models, batches, args.boxes, side=args.crop)
        print(f'written: {args.boxes} (true boxes {TRUTH}, found {FOUND})')
        if args.grids is None:
            return
        regions, grid, sides = distributions(
            models, batches[0], count=args.regions
        )
        plot_distributions(
            regions,
            args.grids,
            points=grid.points.tolist(),
            coordinates=SIDES if sides else DELTAS,
        )
        print(f'written: {args.grids}')
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error


if __name__ == '__main__':
    main()
