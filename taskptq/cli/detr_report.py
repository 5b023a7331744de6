"""Measure what the README of DETRs tells beside its tables.

    python tools/detr_report.py progressive TABLE.table.yml --bits w4a4-8
        [--method mse] --out P.json [--plot P.png]
    python tools/detr_report.py sensitivity TABLE.table.yml --bits w4a4-8
        [--method mse] --out S.json [--plot S.png]
    python tools/detr_report.py queries TABLE.table.yml
        --rows w4a4-8_qdrop w4a4-8_drd --out Q.json [--plot Q.png]
    python tools/detr_report.py alignment TABLE.table.yml --out A.json

``TABLE`` names the float model, its data and its metrics. ``progressive``
quantizes the backbone, then the encoder as well, then the decoder's
attentions, then all (Q-DETR's Fig. 4); ``sensitivity`` quantizes one part at
a time; ``queries`` compares the queries of the decoder, float and in
quantized models; ``alignment`` is what standardized queries cost without any
rounding.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Waiting threads sleep: two that spin beside a busy process slow each other
# down many times over. torch reads it when it is loaded.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

import torch
from torch import nn

from taskptq.analysis.detr_plots import (
    plot_group_losses,
    plot_progressive,
    plot_queries,
)
from taskptq.analysis.query_distribution import (
    QuerySample,
    collect_queries,
    describe_queries,
)
from taskptq.bench.detr_data import (
    GROUPS,
    kept_without,
    partition,
    progressive_steps,
    quantized_names,
    query_points,
)
from taskptq.bench.measurement import Measurement, Replay, current_commit
from taskptq.bench.row_models import (
    column_values,
    evaluate,
    open_measurement,
    quantized_copy,
    recipe_of,
    row_of,
)
from taskptq.bench.table import Row, read_table
from taskptq.calibration.calibrate import calibrate
from taskptq.cli.numbers import count, seed
from taskptq.core import transforming
from taskptq.core.switches import quantizers
from taskptq.engine.contexts import seeded
from taskptq.engine.pipeline import prepare_in_place, run_batch
from taskptq.methods.qdetr.alignment import AlignedQuantizer

FLOAT = 'float'
# Alignment is fitted before anything is rounded: bits are of no matter.
ALIGNED_ROW = 'w8a8_da'


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.
    """
    parser = argparse.ArgumentParser(description='Report on DETRs')
    commands = parser.add_subparsers(dest='what', required=True)
    about = {
        'progressive': 'quantize more and more of the model',
        'sensitivity': 'quantize one part at a time',
        'queries': 'distributions of queries',
        'alignment': 'what aligned queries cost without rounding',
    }
    found = {
        name: commands.add_parser(name, help=text)
        for name, text in about.items()
    }
    for name in ('progressive', 'sensitivity'):
        found[name].add_argument('--bits', required=True, help='e.g. w4a4-8')
        found[name].add_argument('--method', default='mse')
    found['queries'].add_argument(
        '--rows',
        nargs='+',
        required=True,
        help='<bits>_<method>, e.g. w4a4-8_drd',
    )
    found['queries'].add_argument(
        '--images', type=count, default=32, help='evaluated images to look at'
    )
    found['queries'].add_argument(
        '--reuse',
        action='store_true',
        help='take models of equal recipes '
        'from an earlier run on the same float checkpoint',
    )
    for name, command in found.items():
        command.add_argument('table', help='file *.table.yml')
        command.add_argument('--out', type=Path, required=True)
        if name != 'alignment':
            command.add_argument('--plot', type=Path, help='PNG file')
        command.add_argument('--seed', type=seed, default=0)
        command.add_argument(
            '--device', help='cpu or cuda (default: a GPU if there is one)'
        )
    return parser.parse_args(argv)


def measure_part(
    measurement: Measurement, row: Row, keep_float: Sequence[str]
) -> dict[str, Any]:
    """Quantize a part of the float model, and evaluate it.

    Args:
        measurement: Its table's.
        row: Bits, method and seed.
        keep_float: Patterns of what is not quantized.
    """
    recipe = recipe_of(measurement, row, keep_float=keep_float)
    model = copy.deepcopy(measurement.model)
    report = measurement.quantize(model, recipe=recipe, row=row)
    return {
        **evaluate(measurement, model, seed=row.seed),
        'num_quantized': report['swap']['num_quantized'],
        'keep_float': list(keep_float),
    }


def parts_of(measurement: Measurement, row: Row) -> dict[str, list[str]]:
    """Return the groups of what a row quantizes, with their modules.

    Raises:
        ValueError: If a module belongs to no group, or two.
    """
    recipe = recipe_of(measurement, row)
    return partition(quantized_names(measurement.model, recipe.qconfig))


def describe_parts(parts: dict[str, list[str]], row: Row) -> dict[str, Any]:
    """Return what both reports on parts say of them."""
    return {
        'bits': row.bits,
        'method': row.method,
        'recipe': row.recipe,
        'modules': {group: len(names) for group, names in parts.items()},
        'absent': [group for group in GROUPS if group not in parts],
    }


def report_progressive(
    args: argparse.Namespace, measurement: Measurement
) -> dict[str, Any]:
    """Quantize more and more of the model."""
    row = row_of(
        measurement.table, f'{args.bits}_{args.method}', seed=args.seed
    )
    parts = parts_of(measurement, row)
    reference = measurement.measure_float()
    steps = [
        {
            'step': title,
            'groups': list(groups),
            **measure_part(measurement, row, kept_without(groups, parts)),
        }
        for title, groups in progressive_steps(parts)
    ]
    if args.plot is not None:
        columns = measurement.table.columns
        lines = {FLOAT: column_values(reference, columns)}
        lines |= {one['step']: column_values(one, columns) for one in steps}
        plot_progressive(lines, args.plot, title=f'{row.bits}, {row.method}')
    return {**describe_parts(parts, row), FLOAT: reference, 'steps': steps}


def report_sensitivity(
    args: argparse.Namespace, measurement: Measurement
) -> dict[str, Any]:
    """Quantize one part at a time."""
    row = row_of(
        measurement.table, f'{args.bits}_{args.method}', seed=args.seed
    )
    parts = parts_of(measurement, row)
    reference = measurement.measure_float()
    groups = {
        group: measure_part(measurement, row, kept_without([group], parts))
        for group in parts
    }
    for found in groups.values():
        found['lost'] = reference['value'] - found['value']
    if args.plot is not None:
        plot_group_losses(
            {group: found['lost'] for group, found in groups.items()},
            args.plot,
            title=f'{row.bits}, {row.method}',
            unit=f'{metric_title(measurement)} lost',
        )
    return {**describe_parts(parts, row), FLOAT: reference, 'groups': groups}


def metric_title(measurement: Measurement) -> str:
    """Return the header of the table's metric, or else its key."""
    table = measurement.table
    titles = {key: title for title, key in table.columns.items()}
    return titles.get(table.metric, table.metric)


def evaluated_batches(measurement: Measurement, count: int) -> Replay:
    """Read the first evaluated images, at least as many as asked.

    Args:
        measurement: Its test loop's.
        count: Images.

    Raises:
        ValueError: If ``count`` is not positive.
    """
    if count < 1:
        raise ValueError(f'--images {count}: give at least 1')
    batches: list[Any] = []
    seen = 0
    for batch in measurement.loop.dataloader:
        batches.append(batch)
        seen += len(batch['data_samples'])
        if seen >= count:
            break
    return Replay(batches)


def float_queries(
    measurement: Measurement, row: Row, batches: Replay
) -> dict[str, QuerySample]:
    """Collect the queries of the float model, through idle counterparts."""
    model = copy.deepcopy(measurement.model)
    measurement.rewrite(model)
    prepare_in_place(model, recipe_of(measurement, row).qconfig)
    return collect_queries(
        model, batches, forward=run_batch, points=query_points(model)
    )


def report_queries(
    args: argparse.Namespace, measurement: Measurement
) -> dict[str, Any]:
    """Compare the queries of the decoder, float and quantized."""
    rows = {
        name: row_of(measurement.table, name, seed=args.seed)
        for name in args.rows
    }
    batches = evaluated_batches(measurement, args.images)
    first = next(iter(rows.values()))
    found = {FLOAT: float_queries(measurement, first, batches)}
    aligned = {}
    for name, row in rows.items():
        model = quantized_copy(measurement, row, reuse=args.reuse)
        points = query_points(model)
        aligned[name] = has_aligned(model, list(points.values()))
        found[name] = collect_queries(
            model, batches, forward=run_batch, points=points
        )
        if found[name].keys() != found[FLOAT].keys():
            raise ValueError(
                f'row {name} quantizes the queries of {", ".join(points)}, '
                f'row {args.rows[0]} those of {", ".join(found[FLOAT])}: '
                'report on them one after another'
            )
    layers = {
        layer: describe_queries(
            {name: samples[layer] for name, samples in found.items()}
        )
        for layer in found[FLOAT]
    }
    if args.plot is not None:
        plot_queries(layers, args.plot)
    return {
        'rows': {
            name: {'recipe': row.recipe, 'aligned': aligned[name]}
            for name, row in rows.items()
        },
        'num_images': sum(len(one['data_samples']) for one in batches),
        'layers': layers,
    }


def has_aligned(model: nn.Module, names: Sequence[str]) -> bool:
    """Whether all of these quantizers align what they read."""
    return all(
        isinstance(model.get_submodule(name), AlignedQuantizer)
        for name in names
    )


def report_alignment(
    args: argparse.Namespace, measurement: Measurement
) -> dict[str, Any]:
    """Evaluate the float model with aligned queries.

    Raises:
        ValueError: If the recipe aligns no query of the model.
    """
    row = row_of(measurement.table, ALIGNED_ROW, seed=args.seed)
    reference = measurement.measure_float()
    model = copy.deepcopy(measurement.model)
    measurement.rewrite(model)
    prepare_in_place(model, recipe_of(measurement, row).qconfig)
    batches = measurement.batches(measurement.images(row))
    with seeded(row.seed):
        calibrate(model, batches, forward=run_batch)
    aligned = [
        name
        for name, quantizer in quantizers(model)
        if isinstance(quantizer, AlignedQuantizer)
    ]
    if not aligned:
        raise ValueError(
            f'{row.recipe} aligns no query of {type(model).__name__}'
        )
    with transforming(model):
        scores = evaluate(measurement, model, seed=row.seed)
    scores['lost'] = reference['value'] - scores['value']
    return {
        'recipe': row.recipe,
        'quantizers': aligned,
        FLOAT: reference,
        'aligned': scores,
    }


REPORTS: dict[str, Callable[..., dict[str, Any]]] = {
    'progressive': report_progressive,
    'sensitivity': report_sensitivity,
    'queries': report_queries,
    'alignment': report_alignment,
}


def main(argv: list[str] | None = None) -> None:
    """Measure and write.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.

    Raises:
        SystemExit: If a file is missing, or the model or an argument is
            impossible.
    """
    args = parse_args(argv)
    words = sys.argv[1:] if argv is None else argv
    torch.manual_seed(args.seed)
    try:
        table = read_table(args.table)
        measurement = open_measurement(table, device=args.device)
        found = REPORTS[args.what](args, measurement)
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(str(error)) from error
    found = {
        'what': args.what,
        'table': table.name,
        'config': table.config,
        'checkpoint': table.checkpoint,
        'split': table.split,
        'metric': table.metric,
        'columns': dict(table.columns),
        'calibration': dict(table.calibration),
        'seed': args.seed,
        **found,
        'command': shlex.join(['python', 'tools/detr_report.py', *words]),
        'commit': current_commit(),
        'environment': measurement.environment(),
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=1, allow_nan=False) + '\n'
    args.out.write_text(text, encoding='utf-8')
    print(f'written: {args.out}')


if __name__ == '__main__':
    main()
