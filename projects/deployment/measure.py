"""Compare an integer file with its simulation, as the host evaluates both.

    python projects/deployment/measure.py CONFIG FLOAT.pth --metric \
        coco/bbox_mAP --name yolox --recipe w8a8_mse-depthwise

The float checkpoint is quantized with ``deploy`` set to the target, evaluated
as simulation and exported. The file is evaluated on the same images by the
same tool twice, with its operators computed as they stand, in floats (the
simulation completed with all grids that the export adds), and in integers:
``results/scores/<name>.json``. With ``--gate-limits`` files of
several precisions are evaluated and run in turn with the float file:
``results/curve/<name>.json``. ``tools/collect_results.py`` makes RESULTS'
tables of both.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Before the libraries are loaded: waiting threads sleep.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

import torch

from taskptq import apis
from taskptq.bench.measurement import current_commit, describe_environment
from taskptq.cli import benchmark, quantize, test
from taskptq.cli.numbers import count
from taskptq.export.runtime import OnnxFileError

RESULTS = Path(__file__).resolve().parent / 'results'
# For grids that the simulation leaves to the export.
EXPORT_IMAGES = 8
SIMULATION = 'simulation'
RUNTIMES = {
    'onnxruntime': 'onnxruntime',
    'openvino': 'openvino',
    'tensorrt': 'onnxruntime',
}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.
    """
    parser = argparse.ArgumentParser(description='Measure an integer file')
    parser.add_argument('config', help='config of the float model')
    parser.add_argument('checkpoint', help='float checkpoint')
    parser.add_argument('--metric', required=True, help='key of the metric')
    parser.add_argument('--name', required=True, help='name of the result')
    parser.add_argument('--recipe', default='w8a8_mse')
    parser.add_argument(
        '--target', choices=list(RUNTIMES), default='onnxruntime'
    )
    parser.add_argument(
        '--num-images', type=count, default=32, help='calibration images'
    )
    parser.add_argument(
        '--test-images', type=count, help='first images of the test set only'
    )
    parser.add_argument(
        '--within', type=float, help='largest difference that is accepted'
    )
    parser.add_argument(
        '--quantized', help='quantized file, made with deploy, to start from'
    )
    parser.add_argument(
        '--gate-limits',
        nargs='+',
        type=float,
        help='least precisions of integer gates, in dB: one file of each',
    )
    parser.add_argument(
        '--dynamic',
        action='store_true',
        help='images of any size, for test sets that are not of one size',
    )
    parser.add_argument(
        '--float-value', type=float, help="the float model's metric"
    )
    parser.add_argument(
        '--runs', type=count, default=20, help='runs of each timed file'
    )
    parser.add_argument('--threads', type=count, default=1)
    parser.add_argument('--work-dir', help='folder to keep all files in')
    parser.add_argument('--cfg-options', nargs='+', default=[])
    return parser.parse_args(argv)


def overrides(args: argparse.Namespace) -> list[str]:
    """Return the settings that evaluations change, as options.

    The few images do not repay starting processes that load them.
    """
    options = [
        'test_dataloader.num_workers=0',
        'test_dataloader.persistent_workers=False',
        *args.cfg_options,
    ]
    if args.test_images is not None:
        options.append(f'test_dataloader.dataset.indices={args.test_images}')
    return ['--cfg-options', *options]


def quantized_file(args: argparse.Namespace, *, folder: Path) -> str:
    """Quantize as the target computes, unless that is done already."""
    if args.quantized is not None:
        return str(args.quantized)
    deploy = folder / 'deploy.py'
    deploy.write_text(f"qconfig = dict(deploy='{args.target}')\n")
    quantize.main(
        [
            *(args.config, args.checkpoint),
            *('--recipe', args.recipe, '--recipe', str(deploy)),
            *('--num-images', str(args.num_images)),
            *('--out', str(folder / 'quantized.pth')),
        ]
    )
    return str(folder / 'quantized.pth')


def facts(args: argparse.Namespace) -> dict[str, Any]:
    """Return what a result says of the measurement itself."""
    names = ('name', 'config', 'checkpoint', 'recipe', 'target', 'metric')
    return {
        **{name: getattr(args, name) for name in names},
        'runtime': RUNTIMES[args.target],
        'num_images': args.num_images,
        'test_images': args.test_images,
    }


def compare(args: argparse.Namespace, *, folder: Path) -> dict[str, Any]:
    """Evaluate a simulation, as recipe and as export have it, and its file.

    Args:
        args: Result of :func:`parse_args`.
        folder: Where files are written.
    """
    quantized = quantized_file(args, folder=folder)
    simulation = evaluate(args, quantized, folder=folder)
    file = folder / 'model.onnx'
    reports = apis.export_onnx(
        args.config,
        quantized,
        out=file,
        target=args.target,
        num_images=EXPORT_IMAGES,
        dynamic=args.dynamic,
    )
    completed = evaluate(args, str(file), folder=folder, runtime=SIMULATION)
    found = evaluate(args, str(file), folder=folder)
    return {
        **facts(args),
        'simulation': simulation[args.metric],
        'completed': completed[args.metric],
        'file': found[args.metric],
        'within': args.within,
        'metrics': {
            'simulation': simulation,
            'completed': completed,
            'file': found,
        },
        'parts': [part_of(report.to_dict()) for report in reports],
        'file_bytes': sum(
            path.stat().st_size for path in folder.glob('model*.onnx')
        ),
    }


def evaluate(
    args: argparse.Namespace,
    checkpoint: str,
    *,
    folder: Path,
    runtime: str | None = None,
) -> dict[str, float]:
    """Return the host's metrics of a quantized or an exported file.

    Args:
        args: Result of :func:`parse_args`.
        checkpoint: The file.
        folder: Where the host writes.
        runtime: What runs an exported file; None is the target's.
    """
    path = Path(checkpoint)
    more = overrides(args)
    if path.suffix == '.onnx':
        more = ['--runtime', runtime or RUNTIMES[args.target], *more]
    metrics = test.main(
        [
            *(args.config, checkpoint),
            *('--work-dir', str(folder / f'test_{path.name}'), *more),
        ]
    )
    return {name: float(value) for name, value in metrics.items()}


def trace_curve(args: argparse.Namespace, *, folder: Path) -> dict[str, Any]:
    """Evaluate and time a file of each precision.

    Args:
        args: Result of :func:`parse_args`.
        folder: Where files are written.
    """
    quantized = quantized_file(args, folder=folder)
    floating = folder / 'float.onnx'
    apis.export_onnx(
        args.config,
        args.checkpoint,
        out=floating,
        target=args.target,
        float_model=True,
        num_images=1,
    )
    points = []
    for limit in args.gate_limits:
        file = folder / f'gates{limit:g}.onnx'
        (report,) = apis.export_onnx(
            args.config,
            quantized,
            out=file,
            target=args.target,
            gate_limit=limit,
            num_images=EXPORT_IMAGES,
        )
        points.append(
            {
                'what': f'gates from {limit:g} dB on in integers',
                'value': evaluate(args, str(file), folder=folder)[args.metric],
                **part_of(report.to_dict()),
            }
        )
    files = [str(folder / point['file']) for point in points]
    timings = run_in_turn(args, [str(floating), *files])
    for point, timing in zip(points, timings[1:], strict=True):
        point |= {'cpu_ms': timing['cpu_ms'], 'wall_ms': timing['wall_ms']}
        point['ratio'] = round(timings[0]['cpu_ms'] / timing['cpu_ms'], 3)
    return {
        **facts(args),
        'float': args.float_value,
        'float_cpu_ms': timings[0]['cpu_ms'],
        'threads': args.threads,
        'points': points,
    }


def run_in_turn(
    args: argparse.Namespace, files: Sequence[str]
) -> list[dict[str, Any]]:
    """Return the times of files."""
    words = [
        *(files[0], '--against', *files[1:]),
        *('--runtime', RUNTIMES[args.target]),
        *('--threads', str(args.threads), '--runs', str(args.runs)),
    ]
    found = benchmark.run(benchmark.parse_args(words))
    timings: list[dict[str, Any]] = found['timings']
    return timings


def part_of(report: dict[str, Any]) -> dict[str, Any]:
    """Return what the result says of one file of an export."""
    checks = report['checks']
    return {
        'file': Path(report['path']).name,
        'integer_layers': checks.get('integer_layers'),
        'float_layers': checks.get('float_layers'),
        'outputs': checks.get('outputs'),
        'integer_gates': len(report['gates']),
        'float_gates': len(report['float_gates']),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the result.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.

    Raises:
        SystemExit: If the model cannot be exported; the reason is one
            sentence.
    """
    args = parse_args(argv)
    words = sys.argv[1:] if argv is None else argv
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.work_dir or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            if args.gate_limits:
                kind, result = 'curve', trace_curve(args, folder=folder)
            else:
                kind, result = 'scores', compare(args, folder=folder)
        except (OnnxFileError, ValueError) as error:
            raise SystemExit(str(error)) from error
    script = 'python projects/deployment/measure.py'
    result |= {
        'command': f'{script} {shlex.join(words)}',
        'commit': current_commit(),
        'environment': describe_environment(torch.device('cpu')),
    }
    path = RESULTS / kind / f'{args.name}.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
