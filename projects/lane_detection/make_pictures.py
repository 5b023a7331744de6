"""Draw lanes of quantized models, sensitivities of heads, foregrounds.

    python projects/lane_detection/make_pictures.py lanes \
        --table ganet_r18-small_culane-roads --out lanes.png \
        --rows 'mse w3a3' 'qdrop w3a3' 'selective-focus w3a3'
    python projects/lane_detection/make_pictures.py heads \
        --table condlanenet_r18-small_culane-roads --row 'mse w3a3' \
        --out heads.png [--json heads.json]
    python projects/lane_detection/make_pictures.py regions \
        --table ganet_r18-small_culane-roads --out regions.png
    python projects/lane_detection/make_pictures.py foreground \
        --table ganet_r18-small_culane-roads --out foreground.png

Models, data and recipes are those of the tables in ``configs``; a row is
``METHOD BITS [SEED]``. Frames are spaced evenly over a set, not chosen by
result.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskptq.apis import default_device

if TYPE_CHECKING:
    from torch import nn

    from taskptq.bench.measurement import Measurement

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = Path('projects/lane_detection/configs')
WORK_DIR = Path('work_dirs/lane_pictures')
UNIT = 'lane distortion score, px'


def say(text: str) -> None:
    """Print a line immediately."""
    sys.stdout.write(f'{text}\n')
    sys.stdout.flush()


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Draw pictures of lanes')
    commands = parser.add_subparsers(dest='what', required=True)
    about = {
        'lanes': 'lanes of the float and of quantized models',
        'heads': "what each head's quantization error does to lanes",
        'regions': 'what noise on foreground and background does',
        'foreground': 'where the float model sees lanes',
    }
    found = {
        name: commands.add_parser(name, help=text)
        for name, text in about.items()
    }
    found['lanes'].add_argument(
        '--rows',
        nargs='+',
        required=True,
        help="rows of the table, e.g. 'mse w4a4'",
    )
    found['heads'].add_argument(
        '--row', required=True, help="row of the table, e.g. 'mse w4a4'"
    )
    for name in ('lanes', 'heads'):
        found[name].add_argument(
            '--reuse',
            action='store_true',
            help='take files of equal '
            'recipes from an earlier run on the same float checkpoint',
        )
    for name in ('heads', 'regions', 'foreground'):
        found[name].add_argument(
            '--json', type=Path, help='file for the figures'
        )
    for name, command in found.items():
        command.add_argument(
            '--table', required=True, help='<model>_<dataset>'
        )
        command.add_argument(
            '--out', type=Path, required=True, help='PNG file'
        )
        command.add_argument(
            '--category', default='culane', help='set to take frames from'
        )
        command.add_argument(
            '--frames',
            type=int,
            default={'lanes': 3, 'foreground': 1}.get(name, 16),
        )
        command.add_argument('--device', default=default_device())
    args = parser.parse_args(argv)
    args.words = list(sys.argv[1:] if argv is None else argv)
    return args


def measure(args: argparse.Namespace) -> tuple[Any, Any]:
    """Load a table's float model and choose frames of its data."""
    # Loaded late: mmdet takes seconds and warns.
    from lane_detection.pictures import Frames
    from taskptq.bench.measurement import Measurement
    from taskptq.bench.table import read_table

    table = read_table(CONFIGS / f'{args.table}.table.yml')
    measurement = Measurement(
        table, device=args.device, work_dir=WORK_DIR / table.name
    )
    frames = Frames(
        measurement.loop.dataloader.dataset,
        category=args.category,
        count=args.frames,
    )
    return measurement, frames


def quantized(
    measurement: Measurement, name: str, *, reuse: bool
) -> nn.Module:
    """Quantize a copy of the float model like the table.

    Args:
        measurement: The table, its float model and data.
        name: ``METHOD BITS [SEED]``.
        reuse: Use the existing file if it has the same recipe.

    Raises:
        ValueError: If the table has no such row.
    """
    from taskptq.bench.measurement import read_recipe
    from taskptq.engine.checkpoint_file import read_checkpoint
    from taskptq.engine.pipeline import quantize_model
    from taskptq.engine.restore import restore_model

    rows = {row.name: row for row in measurement.table.rows()}
    row = rows.get(name) or rows.get(f'{name} 0')
    if row is None:
        raise ValueError(
            f'{measurement.table.path} has no row {name!r}; it '
            f'has {", ".join(rows)}'
        )
    images = measurement.images(row)
    recipe = read_recipe(row, images=images)
    model = copy.deepcopy(measurement.model)
    out = measurement.work_dir / row.name.replace(' ', '_') / 'quantized.pth'
    if reuse and out.is_file():
        payload = read_checkpoint(out)
        if payload['recipe'] == recipe.to_dict():
            restore_model(payload, model)
            return model
    quantize_model(
        model,
        measurement.batches(images),
        recipe=recipe,
        work_dir=out.parent,
        out=out,
    )
    return model


def lanes(args: argparse.Namespace) -> None:
    """Quantize, and draw lanes."""
    from lane_detection.pictures import draw_comparison, predict
    from taskptq.methods.selective_focus.decoded_distance import LaneDistance

    measurement, frames = measure(args)
    columns = {'float': predict(measurement.model, frames)}
    reference = [sample.pred_lanes for sample in columns['float']]
    metas = [sample.metainfo for sample in columns['float']]
    captions = {}
    for name in args.rows:
        model = quantized(measurement, name, reuse=args.reuse)
        columns[name] = predict(model, frames)
        found = [sample.pred_lanes for sample in columns[name]]
        scores = LaneDistance()(reference, found, metas)
        captions[name] = [f'LDS {score:.1f} px' for score in scores]
        say(f'{name:24s} ' + ', '.join(f'{score:.2f}' for score in scores))
    draw_comparison(columns, args.out, captions=captions)


def heads(args: argparse.Namespace) -> None:
    """Measure and draw the sensitivity of each head."""
    from lane_detection.pictures import run_heads
    from taskptq.analysis.head_noise import measure_inter_head
    from taskptq.analysis.plots import plot_inter_head
    from taskptq.engine.builder import build_adapter
    from taskptq.methods.selective_focus.decoded_distance import LaneDistance

    measurement, frames = measure(args)
    adapter = build_adapter(measurement.model)
    model = quantized(measurement, args.row, reuse=args.reuse)
    outputs = run_heads(measurement.model, model, frames, adapter=adapter)
    found = measure_inter_head(
        **outputs, adapter=adapter, distance=LaneDistance()
    )
    plot_inter_head(found, args.out, unit=UNIT)
    report(found, args, measurement)


def regions(args: argparse.Namespace) -> None:
    """Measure and draw the effect of noise in parts of each head."""
    from lane_detection.pictures import run_heads
    from taskptq.analysis.head_noise import probe_intra_head
    from taskptq.analysis.plots import plot_intra_head
    from taskptq.engine.builder import build_adapter
    from taskptq.methods.selective_focus.decoded_distance import LaneDistance

    measurement, frames = measure(args)
    adapter = build_adapter(measurement.model)
    outputs = run_heads(
        measurement.model, measurement.model, frames, adapter=adapter
    )
    found = probe_intra_head(
        outputs['heads_float'],
        outputs['metas'],
        adapter=adapter,
        distance=LaneDistance(),
    )
    plot_intra_head(found, args.out, unit=UNIT)
    report(found, args, measurement)


def report(
    found: dict[str, Any], args: argparse.Namespace, measurement: Measurement
) -> None:
    """Print the figures, and write them to a file if requested."""
    for name, values in found.items():
        say(
            f'{name:16s} '
            + ', '.join(
                f'{key} {value}' if value is None else f'{key} {value:.3f}'
                for key, value in values.items()
            )
        )
    if args.json is None:
        return
    table = measurement.table
    row = getattr(args, 'row', None)
    words = (row or '').split()  # METHOD BITS [SEED]
    content = {
        'table': args.table,
        'row': row,
        'config': table.config,
        'checkpoint': table.checkpoint,
        'calibration': dict(table.calibration),
        'seed': int(words[2]) if len(words) > 2 else 0,
        'category': args.category,
        'frames': args.frames,
        'unit': UNIT,
        'heads': found,
        'command': shlex.join(
            ['python', 'projects/lane_detection/make_pictures.py', *args.words]
        ),
        'commit': measurement.commit,
        'environment': measurement.environment(),
    }
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(content, indent=1, allow_nan=False) + '\n')


def foreground(args: argparse.Namespace) -> None:
    """Draw where the float model sees lanes, and compare it to decoded ones.

    A model without maps has figures alone, with ``--json``.
    """
    from lane_detection.pictures import (
        compare_foregrounds,
        foreground_maps,
        input_image,
        run_heads,
    )
    from taskptq.analysis.plots import plot_foreground
    from taskptq.engine.builder import build_adapter

    measurement, frames = measure(args)
    adapter = build_adapter(measurement.model)
    outputs = run_heads(
        measurement.model, measurement.model, frames, adapter=adapter
    )
    heads = outputs['heads_float'][0]
    weights = adapter.foreground_proxy(heads)
    near = adapter.decoded_proxy(heads, outputs['metas'][0])
    report(compare_foregrounds(weights, near, heads), args, measurement)
    last = len(frames.indices) - 1
    sample = frames.batch()['data_samples'][last]
    try:
        maps = foreground_maps(weights, index=last)
    except ValueError as error:
        if args.json is None:
            raise
        say(f'no picture: {error}')
        return
    plot_foreground(maps, args.out, image=input_image(sample))


COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    'lanes': lanes,
    'heads': heads,
    'regions': regions,
    'foreground': foreground,
}


def main(argv: list[str] | None = None) -> None:
    """Draw.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.

    Raises:
        SystemExit: If a table, row or number is invalid.
    """
    args = parse_args(argv)
    # Configs name paths from the repository's top level.
    os.chdir(ROOT)
    try:
        COMMANDS[args.what](args)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error
    if args.out.exists():
        say(f'written: {args.out}')


if __name__ == '__main__':
    main()
