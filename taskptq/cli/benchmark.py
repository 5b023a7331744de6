"""Measure the speed of exported files on this machine.

    taskptq benchmark model.onnx --against float.onnx --threads 1

Files run in turn in one process; times are medians, of the processor (all
threads of the process) and of the wall. Each part of an export is a file of
its own.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

# Before the libraries are loaded: torch's threads only prepare inputs.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

from torch import Tensor

from taskptq.bench.onnx_speed import (
    example_inputs,
    float_layers,
    integer_layers,
    measure,
    open_session,
    optimized_graph,
    time_shares,
)
from taskptq.cli.numbers import count, whole
from taskptq.engine.onnx_metadata import read_metadata
from taskptq.engine.refusals import one_sentence, refuse_unwritable_file
from taskptq.export.openvino_session import ONNXRUNTIME, RUNTIMES
from taskptq.export.runtime import OnnxFileError, read_onnx

SHOWN_OPERATORS = 6
SHOWN_LAYERS = 3


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.
    """
    parser = argparse.ArgumentParser(description='Measure exported files')
    parser.add_argument('file', help='ONNX file')
    parser.add_argument(
        '--against',
        nargs='+',
        default=[],
        help='files to compare with, e.g. the float model; ratios are theirs '
        'over that of FILE',
    )
    parser.add_argument(
        '--runtime',
        choices=list(RUNTIMES),
        default=ONNXRUNTIME,
        help='what runs all files; only onnxruntime tells which layers stay '
        'float (default: %(default)s)',
    )
    parser.add_argument(
        '--threads',
        type=count,
        default=1,
        help='threads of the runtime (default: %(default)s)',
    )
    parser.add_argument(
        '--runs',
        type=count,
        default=20,
        help='counted runs of each file (default: %(default)s)',
    )
    parser.add_argument(
        '--warmup',
        type=whole(low=0),
        default=3,
        help='runs before them (default: %(default)s)',
    )
    parser.add_argument(
        '--size',
        nargs=2,
        type=count,
        metavar=('HEIGHT', 'WIDTH'),
        help='size of the images, if the file leaves it free',
    )
    parser.add_argument(
        '--batch',
        type=count,
        default=1,
        help='images (or rows of another part) of a run (default: '
        '%(default)s)',
    )
    parser.add_argument(
        '--json',
        help='file for all numbers; named benchmark.json beside the quantized '
        'file, taskptq report shows it',
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Measure all files.

    Args:
        args: Result of :func:`parse_args`.
    """
    files = [args.file, *args.against]
    sessions = {
        path: open_session(path, runtime=args.runtime, threads=args.threads)
        for path in files
    }
    size = None if args.size is None else tuple(args.size)
    inputs = {
        path: example_inputs(session.ports, size=size, batch=args.batch)
        for path, session in sessions.items()
    }
    timings = measure(
        {
            path: partial(session, *inputs[path])
            for path, session in sessions.items()
        },
        warmup=args.warmup,
        repeats=args.runs,
    )
    found = {
        'runtime': args.runtime,
        'threads': args.threads,
        'batch': args.batch,
        'timings': [
            # Says which quantized file an export was made from.
            timing.to_dict() | {'digest': digest_of(timing.path)}
            for timing in timings
        ],
    }
    if args.runtime == ONNXRUNTIME:
        found |= look_inside(args, inputs[args.file])
    own = found['timings'][0]
    for timing in found['timings'][1:]:
        for kind in ('cpu', 'wall'):
            ratio = timing[f'{kind}_ms'] / own[f'{kind}_ms']
            timing[f'{kind}_ratio'] = round(ratio, 3)
    return found


def digest_of(path: str) -> str | None:
    """Return the digest of the model that a file was exported from."""
    try:
        return read_metadata(read_onnx(path)).digest
    except OnnxFileError:
        return None


def look_inside(
    args: argparse.Namespace, inputs: Sequence[Tensor]
) -> dict[str, Any]:
    """Return what runs in integers, what does not, and the time of each."""
    file = read_onnx(args.file)
    graph = optimized_graph(file, threads=args.threads)
    left = float_layers(graph, file.proto().graph)
    shares = time_shares(file, inputs, threads=args.threads)
    return {
        'integer_layers': integer_layers(graph),
        'float_layers': [vars(layer) for layer in left],
        'time_shares': {name: round(s, 4) for name, s in shares.items()},
    }


def text(found: dict[str, Any]) -> str:
    """Return what was measured, for a reader."""
    lines = [
        f'{"file":40} {"cpu, ms":>9} {"wall, ms":>9} {"cpu":>7} {"wall":>7}'
    ]
    for timing in found['timings']:
        ratios = [timing.get('cpu_ratio'), timing.get('wall_ratio')]
        shown = ['' if r is None else f'{r:.2f}x' for r in ratios]
        lines.append(
            f'{timing["file"][-40:]:40} {timing["cpu_ms"]:9.2f} '
            f'{timing["wall_ms"]:9.2f} {shown[0]:>7} {shown[1]:>7}'
        )
    first = found['timings'][0]
    lines.append(
        f'Medians of {first["runs"]} runs, {found["threads"]} thread(s), '
        f'batch {found["batch"]}, {found["runtime"]}.'
    )
    if 'float_layers' not in found:
        return '\n'.join(lines)
    left = found['float_layers']
    lines.append(
        f'{found["integer_layers"]} products run in integers, {len(left)} in '
        f'float{":" if left else ""}'
    )
    for why, number in Counter(layer['why'] for layer in left).most_common():
        names = [layer['name'] for layer in left if layer['why'] == why]
        more = ', ...' if number > SHOWN_LAYERS else ''
        lines.append(
            f'  {number:4} {why}: {", ".join(names[:SHOWN_LAYERS])}{more}'
        )
    shares = list(found['time_shares'].items())[:SHOWN_OPERATORS]
    spent = ', '.join(f'{name} {100 * share:.0f} %' for name, share in shares)
    lines.append(f'Time: {spent}')
    return '\n'.join(lines)


def main(argv: list[str] | None = None) -> None:
    """Measure and print.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.

    Raises:
        SystemExit: If something is refused; the reason is one sentence.
    """
    args = parse_args(argv)
    with one_sentence():
        if args.json is not None:
            refuse_unwritable_file(args.json, name='--json')
        found = run(args)
    if args.json is not None:
        path = Path(args.json)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=1) + '\n', encoding='utf-8')
    print(text(found))


if __name__ == '__main__':
    main()
