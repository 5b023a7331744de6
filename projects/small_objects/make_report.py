"""Measure the figures of the grid heads' README that are not in its tables.

    python make_report.py errors CONFIG CHECKPOINT --out E.json
        [--plot E.png] [--recipes w4a4_mse ...]
    python make_report.py grids CONFIG CHECKPOINT --out G.json
    python make_report.py gradients CONFIG CHECKPOINT ... --out V.json
    python make_report.py cost CONFIG CHECKPOINT ... --out C.json
    python make_report.py branches TABLE ... --rows w4a4_mse --out B.json

``errors`` rounds the logits of the float model's foreground, or uses those of
quantized models, and compares the errors of boxes with the formula; ``grids``
ranks grids by it; ``gradients`` compares localization gradients of several
models, or of checkpoints of one training, with the first one; ``cost``
compares the time of their heads; ``branches`` evaluates quantized scores with
float boxes, and the reverse.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Waiting threads sleep: spinning ones slow each other down many times over on
# a busy machine. torch reads this when it is loaded.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

import torch
from mmengine.runner import set_random_seed
from torch import nn

from small_objects.analysis.gradient_variance import compare_variances
from small_objects.analysis.grid_choice import choose_grid
from small_objects.analysis.grid_error import (
    compare_boxes,
    compare_expectations,
    measure_bits,
    observed_step,
    round_logits,
)
from small_objects.grid_data import (
    FOREGROUND,
    Foreground,
    foreground_logits,
    gradient_variances,
    head_seconds,
    load_float,
    training_batches,
    training_data,
)
from small_objects.mixed_detector import MixedDetector
from taskptq.analysis.bars import plot_error_scatter
from taskptq.apis import quantize
from taskptq.bench.measurement import Measurement, current_commit
from taskptq.bench.row_models import (
    column_values,
    evaluate,
    open_measurement,
    quantized_copy,
    row_of,
)
from taskptq.bench.table import Row, read_table
from taskptq.cli.numbers import bits, count, seed, share
from taskptq.methods.box_grid.box_grid import BoxGrid

BITS = (8, 6, 4, 3, 2)
SHARES = (0.25, 0.5, 1.0, 1.5, 2.0)
BETAS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)
INTERVALS = (5, 10, 16)
# Number of coordinates used for a ranking.
MAX_TARGETS = 20000


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.
    """
    parser = argparse.ArgumentParser(description='Report on grid heads')
    commands = parser.add_subparsers(dest='what', required=True)
    errors = commands.add_parser('errors', help='formula against measurement')
    errors.add_argument('--plot', type=Path, help='PNG of the scatter')
    errors.add_argument(
        '--recipes',
        nargs='+',
        default=[],
        help='names or files: logits of the models that they make',
    )
    errors.add_argument('--bits', nargs='+', type=bits, default=list(BITS))
    grids = commands.add_parser('grids', help='rank grids by the formula')
    grids.add_argument('--bits', type=bits, default=4, help='of the logits')
    grids.add_argument('--keep', type=count, default=12, help='grids to keep')
    gradients = commands.add_parser('gradients', help='noise of training')
    for command in (errors, grids):
        command.add_argument('config')
        command.add_argument('checkpoint')
        command.add_argument('--images', type=count, default=32)
        command.add_argument(
            '--threshold',
            type=share,
            default=FOREGROUND,
            help='least confidence of what counts as an object',
        )
    gradients.add_argument('--batches', type=count, default=12)
    cost = commands.add_parser('cost', help='time of the heads')
    cost.add_argument('--images', type=count, default=4)
    cost.add_argument('--repeats', type=count, default=20)
    branches = commands.add_parser(
        'branches', help='scores or boxes of quantized models alone'
    )
    branches.add_argument('tables', nargs='+', help='files *.table.yml')
    branches.add_argument(
        '--rows', nargs='+', required=True, help='such as w4a4_mse'
    )
    for command in (gradients, cost):
        command.add_argument(
            'models', nargs='+', help='CONFIG CHECKPOINT pairs'
        )
    for command in (errors, grids, gradients, cost, branches):
        command.add_argument('--out', type=Path, required=True)
        command.add_argument('--seed', type=seed, default=0)
    return parser.parse_args(argv)


def report_errors(args: argparse.Namespace) -> dict[str, Any]:
    """Compare the errors of coordinates and boxes with the formula."""
    cfg, model = load_float(args.config, args.checkpoint)
    batches = training_batches(cfg, num_images=args.images, seed=args.seed)
    heads: dict[str, Any] = {}
    for name, found in foreground_logits(
        model, batches, threshold=args.threshold
    ).items():
        heads[name] = {
            'count': len(found.logits),
            'grid': describe(found.grid),
            'rounded': measure_bits(
                found.logits, grid=found.grid, bits=args.bits
            ),
            'boxes': {
                str(bits): box_errors(found, bits) for bits in args.bits
            },
            'layers': {},
        }
    for recipe in args.recipes:
        title = Path(recipe).stem
        quant, _ = quantize(
            args.config,
            args.checkpoint,
            recipe=recipe,
            seed=args.seed,
            calibration={'num_images': args.images},
            work_dir=Path('work_dirs') / 'grid_report' / title,
        )
        found = foreground_logits(
            model, batches, quant_model=quant, threshold=args.threshold
        )
        for name, one in found.items():
            heads[name]['layers'][title] = layer_errors(one)
    if args.plot is not None:
        plot(heads, args.plot)
    return {
        'config': args.config,
        'checkpoint': args.checkpoint,
        'num_images': args.images,
        'threshold': args.threshold,
        'heads': heads,
    }


def describe(grid: BoxGrid) -> dict[str, Any]:
    """Return a grid's settings and points."""
    return {
        'alpha': grid.alpha,
        'beta': grid.beta,
        'num_intervals': grid.num_intervals,
        'one_sided': grid.one_sided,
        'points': [round(point, 4) for point in grid.points.tolist()],
    }


def box_errors(found: Foreground, bits: int) -> dict[str, Any]:
    """Compare errors of decoded boxes, in pixels of the network's input."""
    changed, step = round_logits(found.logits, num_bits=bits)
    return compare_boxes(
        found.logits, changed, grid=found.grid, step=step, decode=found.decode
    )


def layer_errors(found: Foreground) -> dict[str, Any]:
    """Compare errors of a quantized model's logits."""
    assert found.changed is not None
    step = observed_step(found.logits, found.changed)
    return {
        'step': [round(value, 5) for value in step.flatten().tolist()],
        'coordinates': compare_expectations(
            found.logits, found.changed, grid=found.grid, step=step
        ),
        'boxes': compare_boxes(
            found.logits,
            found.changed,
            grid=found.grid,
            step=step,
            decode=found.decode,
        ),
    }


def plot(heads: Mapping[str, Any], path: Path) -> None:
    """Draw the scatter of all heads and bits."""
    results = {
        f'{name}, logits at {bits} bits': found
        for name, head in heads.items()
        for bits, found in head['rounded'].items()
    }
    results |= {
        f'{name}, {title}': found['coordinates']
        for name, head in heads.items()
        for title, found in head['layers'].items()
    }
    plot_error_scatter(results, path, unit='encoded units')


def report_grids(args: argparse.Namespace) -> dict[str, Any]:
    """Rank grids by the error of rounded logits on real coordinates.

    The float model's coordinates serve as targets, and the spread of its
    distributions as the uncertainty of predictions.
    """
    cfg, model = load_float(args.config, args.checkpoint)
    batches = training_batches(cfg, num_images=args.images, seed=args.seed)
    heads = {}
    for name, found in foreground_logits(
        model, batches, threshold=args.threshold
    ).items():
        values = found.grid.expectation(found.logits)
        p = found.logits.float().softmax(dim=-1)
        spread = (p * (found.grid.points - values[..., None]).square()).sum(-1)
        largest = float(values.abs().flatten().quantile(0.999))
        alphas = {round(share * largest, 2) for share in SHARES}
        settings = [
            {
                'alpha': alpha,
                'beta': beta,
                'num_intervals': intervals,
                'one_sided': found.grid.one_sided,
            }
            for alpha, beta, intervals in itertools.product(
                sorted({*alphas, found.grid.alpha}),
                sorted({*BETAS, found.grid.beta}),
                sorted({*INTERVALS, found.grid.num_intervals}),
            )
            # Extreme settings do not overflow but make points coincide.
            if alpha * beta < 12
        ]
        logits = found.logits
        extent = float((logits.amax(-1) - logits.amin(-1)).quantile(0.999))
        flat = values.flatten()
        ranked = choose_grid(
            flat[torch.randperm(len(flat))[:MAX_TARGETS]],
            make=BoxGrid,
            settings=settings,
            num_bits=args.bits,
            logit_range=extent,
            spread=float(spread.sqrt().median()),
        )
        own = next(
            one
            for one in ranked
            if all(
                one[key] == getattr(found.grid, key)
                for key in ('alpha', 'beta', 'num_intervals')
            )
        )
        heads[name] = {
            'count': len(values),
            'largest': largest,
            'logit_range': extent,
            'spread': float(spread.sqrt().median()),
            'used': own,
            'rank': ranked.index(own) + 1,
            'candidates': len(ranked),
            'best': ranked[: args.keep],
        }
    return {
        'config': args.config,
        'checkpoint': args.checkpoint,
        'bits': args.bits,
        'num_images': args.images,
        'heads': heads,
    }


def pairs_of(models: Sequence[str]) -> list[tuple[str, str]]:
    """Return (config, checkpoint) of each model.

    Raises:
        ValueError: If the arguments are not pairs.
    """
    if len(models) % 2:
        raise ValueError(
            f'{len(models)} arguments: give pairs of CONFIG CHECKPOINT'
        )
    return list(zip(models[::2], models[1::2], strict=True))


def report_cost(args: argparse.Namespace) -> dict[str, Any]:
    """Compare the time of heads with the first model's.

    All models run on images of the first model's data.
    """
    pairs = pairs_of(args.models)
    loaded = [load_float(*pair) for pair in pairs]
    batch = training_batches(
        loaded[0][0], num_images=args.images, seed=args.seed
    )[0]
    seconds = head_seconds(
        [model for _, model in loaded], batch, repeats=args.repeats
    )
    return {
        'num_images': args.images,
        'repeats': args.repeats,
        'models': [
            {
                'config': config,
                'checkpoint': checkpoint,
                'head_seconds': value,
                'ratio': value / seconds[0],
            }
            for (config, checkpoint), value in zip(pairs, seconds, strict=True)
        ],
    }


def report_gradients(args: argparse.Namespace) -> dict[str, Any]:
    """Compare the noise of localization gradients with the first model's."""
    found = []
    for config, checkpoint in pairs_of(args.models):
        cfg, model = load_float(config, checkpoint)
        # Augmentation and sampling use both torch and numpy.
        set_random_seed(args.seed)
        layers = gradient_variances(
            model, training_data(cfg, num_batches=args.batches, seed=args.seed)
        )
        entry = {'config': config, 'checkpoint': checkpoint, 'layers': layers}
        if found:
            first = found[0]['layers']
            entry['first_over_this'] = {
                name: compare_variances(first[name], stats)
                for name, stats in layers.items()
                if name in first
            }
        found.append(entry)
    return {'num_batches': args.batches, 'models': found}


def report_branches(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluate mixtures of float models and quantized ones."""
    models = []
    for path in args.tables:
        measurement = open_measurement(read_table(path))
        models.append(
            {
                'table': measurement.table.name,
                'config': measurement.table.config,
                'checkpoint': measurement.table.checkpoint,
                'float': cells(measurement, measurement.model, args.seed),
                'rows': [
                    {'row': name, **branch_scores(measurement, row, args.seed)}
                    for name in args.rows
                    for row in [
                        row_of(measurement.table, name, seed=args.seed)
                    ]
                ],
            }
        )
    return {'models': models}


def branch_scores(
    measurement: Measurement, row: Row, seed: int
) -> dict[str, Any]:
    """Evaluate a quantized model, and each of its branches alone."""
    quant = quantized_copy(measurement, row)
    plain = measurement.model
    mixed = {
        'quantized': quant,
        'scores': MixedDetector(quant, plain),
        'boxes': MixedDetector(plain, quant),
    }
    return {
        name: cells(measurement, model, seed) for name, model in mixed.items()
    }


def cells(
    measurement: Measurement, model: nn.Module, seed: int
) -> dict[str, float | None]:
    """Return the table's columns of a model."""
    return column_values(
        evaluate(measurement, model, seed=seed), measurement.table.columns
    )


def main(argv: list[str] | None = None) -> None:
    """Measure and write.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.

    Raises:
        SystemExit: If the model or an argument is invalid.
    """
    args = parse_args(argv)
    words = sys.argv[1:] if argv is None else argv
    torch.manual_seed(args.seed)
    run = {
        'errors': report_errors,
        'grids': report_grids,
        'gradients': report_gradients,
        'cost': report_cost,
        'branches': report_branches,
    }[args.what]
    try:
        found = run(args)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error
    found |= {
        'what': args.what,
        'seed': args.seed,
        'command': shlex.join(
            ['python', 'projects/small_objects/make_report.py', *words]
        ),
        'commit': current_commit(),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=1, allow_nan=False) + '\n'
    args.out.write_text(text, encoding='utf-8')
    print(f'written: {args.out}')


if __name__ == '__main__':
    main()
