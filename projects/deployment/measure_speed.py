"""Time the integer files of a model against float ones, on noise.

    python projects/deployment/measure_speed.py --name rtmdet-s \
        mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py --size 640 640

Speed does not depend on what weights are worth: without ``--checkpoint`` they
are random, and norms have the statistics of noise. The model is quantized in
memory for the target and exported; float file, integer files and, on request,
what the runtime's own tool makes of the same float file (``--peer``:
quantize_static of ONNX Runtime, NNCF for OpenVINO) run in turn in one process.
The result is ``results/speed/<name>.json``, from which
``tools/collect_results.py`` makes RESULTS' table.
"""

from __future__ import annotations

import argparse
import copy
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
from torch import nn

import taskptq
from taskptq import apis
from taskptq.bench.measurement import current_commit, describe_environment
from taskptq.bench.peers import quantize_by_nncf, quantize_by_onnxruntime
from taskptq.cli import benchmark
from taskptq.cli.numbers import count
from taskptq.engine.checkpoint_file import (
    load_float_weights,
    local_file,
    read_checkpoint,
)
from taskptq.engine.file_choices import FileChoices
from taskptq.engine.onnx_export import export_parts
from taskptq.engine.onnx_inputs import random_batch
from taskptq.engine.onnx_metadata import OnnxMetadata
from taskptq.export.openvino_session import ONNXRUNTIME

RESULTS = Path(__file__).resolve().parent / 'results' / 'speed'
# Limits OpenVINO's kernels; those for AMX lose on small layers.
ISA = 'ONEDNN_MAX_CPU_ISA'
OPSETS = {'peer': 17, 'ours': 21}
# Runtime -> name of its own tool, how to call it, and with which method.
PEERS = {
    ONNXRUNTIME: ('quantize_static', quantize_by_onnxruntime, 'ort-minmax'),
    'openvino': ('nncf', quantize_by_nncf, 'nncf-performance'),
}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.
    """
    parser = argparse.ArgumentParser(description='Time integer files')
    parser.add_argument('config', help='config of the float model')
    parser.add_argument('--checkpoint', help='float checkpoint')
    parser.add_argument('--name', required=True, help='name of the result')
    parser.add_argument('--size', nargs=2, type=count, required=True)
    parser.add_argument(
        '--recipe', nargs='+', default=['w8a8_minmax'], help='one file of each'
    )
    parser.add_argument(
        '--target', choices=['onnxruntime', 'openvino'], default=ONNXRUNTIME
    )
    parser.add_argument('--peer', action='store_true')
    parser.add_argument('--threads', nargs='+', type=count, default=[1])
    parser.add_argument('--runs', type=count, default=15)
    parser.add_argument(
        '--gate-limit',
        nargs='+',
        type=float,
        default=[None],
        help='least precisions of integer gates, in dB: one file of each',
    )
    parser.add_argument('--work-dir', help='folder to keep all files in')
    return parser.parse_args(argv)


def build(args: argparse.Namespace, data: dict[str, Any]) -> nn.Module:
    """Return the float model, with weights that give finite outputs."""
    torch.manual_seed(0)
    model = apis.build_model(apis.read_config(args.config))
    if args.checkpoint is not None:
        path = local_file(args.checkpoint)
        load_float_weights(model, read_checkpoint(path), path=str(path))
        return model.eval()
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        run(model, data)
    return model.eval()


def run(model: nn.Module, data: dict[str, Any]) -> Any:
    """Run a model's network."""
    return model(**copy.deepcopy(data), mode='tensor')


def write(
    args: argparse.Namespace,
    model: nn.Module,
    data: dict[str, Any],
    *,
    path: Path,
    opset: int,
    quantized: bool,
    gate_limit: float | None = None,
) -> dict[str, Any]:
    """Export a model; return what to know of the file."""
    meta = OnnxMetadata(
        parts=[],
        export='',
        model=type(model).__name__,
        recipe='own' if quantized else 'float',
        digest='',
        target=args.target,
        input_size=list(args.size),
    )
    reports = export_parts(
        model,
        data,
        out=path,
        meta=meta,
        opset=opset,
        calibration=[data] if quantized else [],
        choices=FileChoices(gate_limit=gate_limit),
    )
    report = reports[0].to_dict()
    return {
        'file_bytes': path.stat().st_size,
        'integer_layers': report['checks'].get('integer_layers'),
        'float_layers': report['checks'].get('float_layers'),
        'integer_gates': len(report['gates']),
        'float_gates': len(report['float_gates']),
    }


def write_all(
    args: argparse.Namespace, *, folder: Path
) -> dict[str, dict[str, Any]]:
    """Write every file; return what to know of each, the float one first."""
    data = random_batch(tuple(args.size))
    model = build(args, data)
    files = {'float': folder / 'float.onnx'}
    plain = {'opset': OPSETS['ours'], 'quantized': False}
    known = {'float': write(args, model, data, path=files['float'], **plain)}
    for recipe in args.recipe:
        own = copy.deepcopy(model)
        taskptq.quantize(
            own,
            [data],
            recipe=[recipe, {'qconfig': {'deploy': args.target}}],
            forward=run,
            resume=False,
            work_dir=folder / recipe,
        )
        for limit in args.gate_limit:
            name = recipe if limit is None else f'{recipe}_gates{limit:g}'
            known[name] = write(
                args,
                own,
                data,
                path=folder / f'{name}.onnx',
                opset=OPSETS['ours'],
                quantized=True,
                gate_limit=limit,
            )
    if args.peer:
        name, quantize, method = PEERS[args.target]
        source, path = folder / 'source.onnx', folder / f'{name}.onnx'
        plain = {'opset': OPSETS['peer'], 'quantized': False}
        write(args, model, data, path=source, **plain)
        quantize(source, path, inputs=[(data['inputs'],)], method=method)
        known[name] = {'file_bytes': path.stat().st_size}
    return known


def time_all(
    args: argparse.Namespace,
    names: Sequence[str],
    *,
    folder: Path,
    threads: int,
) -> dict[str, Any]:
    """Run all files in turn."""
    paths = [str(folder / f'{name}.onnx') for name in names]
    words = [
        *(paths[0], '--against', *paths[1:]),
        *('--runtime', args.target),
        *('--threads', str(threads), '--runs', str(args.runs)),
    ]
    before = os.getloadavg()[0]
    timings = benchmark.run(benchmark.parse_args(words))['timings']
    # Of more than our own threads: other processes shared the machine.
    load = max(before, os.getloadavg()[0])
    rows = []
    for name, timing in zip(names, timings, strict=True):
        row = {'what': name, **timing}
        for kind in ('cpu', 'wall'):
            ratio = timings[0][f'{kind}_ms'] / timing[f'{kind}_ms']
            row[f'{kind}_ratio'] = round(ratio, 3)
        row['file'] = Path(timing['file']).name
        rows.append(row)
    return {'threads': threads, 'load': round(load, 1), 'timings': rows}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the result.

    Args:
        argv: Arguments without the program's name, ``sys.argv`` if None.
    """
    args = parse_args(argv)
    words = sys.argv[1:] if argv is None else argv
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(args.work_dir or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        known = write_all(args, folder=folder)
        timed = [
            time_all(args, list(known), folder=folder, threads=threads)
            for threads in args.threads
        ]
    script = 'python projects/deployment/measure_speed.py'
    isa = os.environ.get(ISA)
    result = {
        'name': args.name,
        'config': args.config,
        'checkpoint': args.checkpoint,
        'size': list(args.size),
        'runtime': args.target if isa is None else f'{args.target}, {isa}',
        'files': known,
        'runs': timed,
        'command': f'{script} {shlex.join(words)}'
        if isa is None
        else f'{ISA}={isa} {script} {shlex.join(words)}',
        'commit': current_commit(),
        'environment': describe_environment(torch.device('cpu')),
        'cores': os.cpu_count(),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f'{args.name}.json'
    path.write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
