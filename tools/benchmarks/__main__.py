"""Measure speed and memory, on this machine, in one run.

    python tools/benchmarks eval-speed CONFIG CHECKPOINT
    python tools/benchmarks reconstruction-speed CONFIG CHECKPOINT
    python tools/benchmarks step-limit CONFIG CHECKPOINT
    python tools/benchmarks memory [CONFIG CHECKPOINT]
    python tools/benchmarks profile CONFIG CHECKPOINT [--unit NAME]
    python tools/benchmarks head-cost GRID_CONFIG PLAIN_CONFIG
    python tools/benchmarks product-mode [CONFIG ...]
    python tools/benchmarks sparse-weights [FILE.onnx ...]
    python tools/benchmarks kills [--tries 20]

Each prints its result and writes it as JSON, with the command, the commit and
the environment. Things that are compared take turns within one call.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

# Waiting threads sleep: spinning ones slow each other down many times over on
# a busy machine. torch reads this when it is loaded.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import (
    eval_speed,
    head_cost,
    kills,
    memory,
    product_mode,
    profiling,
    reconstruction_speed,
    run_setup,
    sparse_weights,
    step_limit,
)
from taskptq.cli.numbers import count, seed

CONFIG = 'configs/retinanet/retinanet_r18-half_fpn_bccd.py'
CHECKPOINT = 'configs/retinanet/checkpoints/retinanet_r18-half_fpn_bccd.pth'


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.
    """
    parser = argparse.ArgumentParser(description='Measure speed and memory')
    commands = parser.add_subparsers(dest='benchmark', required=True)
    _add_eval_speed(commands)
    _add_reconstruction_speed(commands)
    _add_step_limit(commands)
    _add_memory(commands, 'memory')
    # Started by the memory benchmark for each number of images.
    _add_memory(commands, 'memory-worker')
    _add_profile(commands)
    _add_head_cost(commands)
    _add_product_mode(commands)
    _add_sparse_weights(commands)
    _add_kills(commands)
    return parser.parse_args(argv)


def _add(
    commands: Any, name: str, *, what: str, recipe: str, optional: bool = False
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=what)
    options: dict[str, Any] = {'nargs': '?'} if optional else {}
    parser.add_argument(
        'config',
        help='config of the float model',
        **options,
        **({'default': CONFIG} if optional else {}),
    )
    parser.add_argument(
        'checkpoint',
        help='float checkpoint',
        **options,
        **({'default': CHECKPOINT} if optional else {}),
    )
    parser.add_argument(
        '--recipe',
        default=recipe,
        help='name of a recipe, or file that sets its parts',
    )
    parser.add_argument('--out', help='JSON file to write')
    return parser


def _add_eval_speed(commands: Any) -> None:
    parser = _add(
        commands,
        'eval-speed',
        recipe='w8a8_minmax',
        what='evaluation, quantized against float',
    )
    parser.add_argument(
        '--repeats', type=count, default=5, help='timed passes of each'
    )
    parser.add_argument(
        '--limit', type=count, help='images of the test set (default: all)'
    )
    parser.add_argument(
        '--calibration-images', type=count, default=32, help='images'
    )


def _add_reconstruction_speed(commands: Any) -> None:
    parser = _add(
        commands,
        'reconstruction-speed',
        recipe='w4a4_qdrop',
        what='reconstruction steps against a plain loop',
    )
    parser.add_argument(
        '--num-images', type=count, default=64, help='calibration images'
    )
    parser.add_argument(
        '--num-units',
        type=count,
        default=6,
        help='units to time, spread over the depth of the model',
    )
    parser.add_argument(
        '--steps', type=count, default=9, help='our steps in each round'
    )
    parser.add_argument(
        '--rounds', type=count, default=2, help='turns of both loops'
    )


def _add_step_limit(commands: Any) -> None:
    parser = _add(
        commands,
        'step-limit',
        recipe='w4a4_qdrop',
        what='reconstruction steps against the float block',
    )
    parser.add_argument(
        '--num-images', type=count, default=16, help='calibration images'
    )
    parser.add_argument(
        '--num-units',
        type=count,
        default=4,
        help='units to time, spread over the depth of the model',
    )
    parser.add_argument(
        '--steps', type=count, default=8, help='steps of each in a round'
    )
    parser.add_argument(
        '--rounds', type=count, default=3, help='turns of both'
    )


def _add_memory(commands: Any, name: str) -> None:
    parser = _add(
        commands,
        name,
        recipe='w4a4_qdrop',
        optional=True,
        what='peak memory at N and at 2N images',
    )
    parser.add_argument('--num-images', type=count, default=64, help='N')
    parser.add_argument(
        '--budget-mib',
        type=count,
        default=64,
        help='budget of the activation cache',
    )
    parser.add_argument(
        '--steps', type=count, default=2, help='steps of each unit'
    )
    parser.add_argument(
        '--batch-size',
        type=count,
        default=8,
        help='images per calibration batch',
    )


def _add_profile(commands: Any) -> None:
    parser = _add(
        commands,
        'profile',
        recipe='w4a4_qdrop',
        what='operators of a reconstruction step',
    )
    parser.add_argument(
        '--unit', help='qualified name (default: the one in the middle)'
    )
    parser.add_argument(
        '--num-images', type=count, default=32, help='calibration images'
    )
    parser.add_argument(
        '--steps', type=count, default=10, help='steps to profile'
    )
    parser.add_argument(
        '--rows', type=count, default=20, help='operators to list'
    )


def _add_head_cost(commands: Any) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        'head-cost', help='inference of grid heads against plain ones'
    )
    parser.add_argument('config', help='config with grid heads')
    parser.add_argument('plain', help='config of the same with plain heads')
    parser.add_argument(
        '--checkpoint', help='weights of the former (default: random)'
    )
    parser.add_argument(
        '--plain-checkpoint', help='weights of the latter (default: random)'
    )
    parser.add_argument(
        '--repeats', type=count, default=10, help='timed calls of each'
    )
    parser.add_argument(
        '--batch-size', type=count, default=2, help='images of a call'
    )
    parser.add_argument(
        '--size',
        type=count,
        nargs=2,
        default=(320, 320),
        metavar=('HEIGHT', 'WIDTH'),
        help='pixels of an image',
    )
    parser.add_argument('--out', help='JSON file to write')


def _add_product_mode(commands: Any) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        'product-mode',
        help="seeing the products in a module's own code against not",
    )
    parser.add_argument(
        'configs',
        nargs='*',
        help="configs of the hosts' models (default: five of them)",
    )
    parser.add_argument(
        '--repeats', type=count, default=30, help='timed passes of each'
    )
    parser.add_argument('--out', help='JSON file to write')


def _add_sparse_weights(commands: Any) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        'sparse-weights', help='packed sparse weights in OpenVINO'
    )
    parser.add_argument(
        'files', nargs='*', help='exported files, besides drawn layers'
    )
    parser.add_argument(
        '--repeats', type=count, default=50, help='timed calls of each'
    )
    parser.add_argument('--out', help='JSON file to write')


def _add_kills(commands: Any) -> None:
    parser: argparse.ArgumentParser = commands.add_parser(
        'kills', help='results of killed and concurrent quantizations'
    )
    parser.add_argument(
        '--tries', type=count, default=20, help='tries of each kind'
    )
    parser.add_argument(
        '--steps', type=count, default=40, help='steps of each unit'
    )
    parser.add_argument('--seed', type=seed, default=0, help='seed')
    parser.add_argument('--out', help='JSON file to write')


def measure(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Run one benchmark.

    Args:
        args: Result of :func:`parse_args`.

    Returns:
        The result, plain types, and what to print.
    """
    options = {
        key: value
        for key, value in vars(args).items()
        if key not in ('benchmark', 'config', 'checkpoint', 'out')
    }
    if args.benchmark == 'head-cost':
        options |= {'checkpoint': args.checkpoint, 'size': tuple(args.size)}
        result = head_cost.measure(args.config, **options)
        return result, head_cost.lines(result)
    if args.benchmark == 'product-mode':
        result = product_mode.measure(**options)
        return result, product_mode.lines(result)
    if args.benchmark == 'sparse-weights':
        result = sparse_weights.measure(**options)
        return result, sparse_weights.lines(result)
    if args.benchmark == 'kills':
        result = kills.measure(**options)
        return result, kills.lines(result)
    if args.benchmark == 'memory':
        options['script'] = __file__
    module: Any = {
        'eval-speed': eval_speed,
        'reconstruction-speed': reconstruction_speed,
        'step-limit': step_limit,
        'memory': memory,
        'profile': profiling,
    }[args.benchmark]
    result = module.measure(args.config, args.checkpoint, **options)
    return result, module.lines(result)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run one benchmark, print and write its result.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.

    Raises:
        SystemExit: If something is refused; the reason is one sentence.
    """
    args = parse_args(argv)
    run_setup.quiet()
    if args.benchmark == 'memory-worker':
        found = memory.work(
            args.config,
            args.checkpoint,
            recipe=args.recipe,
            num_images=args.num_images,
            budget_mib=args.budget_mib,
            steps=args.steps,
            batch_size=args.batch_size,
        )
        print(json.dumps(found))
        return found
    try:
        result, text = measure(args)
    except (FileNotFoundError, RuntimeError, ValueError) as error:
        raise SystemExit(str(error)) from error
    print('\n'.join(text))
    name = args.benchmark
    if hasattr(args, 'config'):
        name += f'_{Path(args.config).stem}'
    path = run_setup.write_result(result, name=name, out=args.out)
    print(f'written to {path}')
    return result


if __name__ == '__main__':
    main()
