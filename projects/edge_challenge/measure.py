"""Measure the score of a segmentor: float and W8A8, both as ONNX files.

    python projects/edge_challenge/measure.py CONFIG FLOAT.pth --out RESULT

Accuracy is that of the exported file on the config's test images; the time is
that of the network alone in ONNX Runtime on one thread, as the challenge
times the network alone.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

from taskptq import apis
from taskptq.bench.measurement import current_commit, file_digest
from taskptq.bench.onnx_speed import (
    example_inputs,
    measure,
    open_session,
)
from taskptq.cli import test
from taskptq.cli.projects import load_projects
from taskptq.engine.onnx_metadata import read_metadata
from taskptq.export.runtime import read_onnx

METRIC = 'lpcvc/mDice'


def export_files(args: argparse.Namespace, folder: Path) -> dict[str, Path]:
    """Quantize, and export both models.

    Returns:
        Name -> ONNX file.
    """
    files = {name: folder / f'{name}.onnx' for name in ('float', args.recipe)}
    quantized = folder / f'{args.recipe}.pth'
    apis.export_onnx(
        args.config,
        args.checkpoint,
        out=files['float'],
        float_model=True,
        num_images=1,
    )
    apis.quantize(
        args.config,
        args.checkpoint,
        # Also the grids that the runtime needs, on all images.
        recipe=[args.recipe, {'qconfig': {'deploy': 'onnxruntime'}}],
        calibration={'num_images': args.num_images},
        out=quantized,
    )
    apis.export_onnx(
        args.config,
        quantized,
        out=files[args.recipe],
        num_images=args.num_images,
    )
    return files


def accuracy(config: str, file: Path, folder: Path) -> dict[str, float]:
    """Return the metrics of a file on the config's test images."""
    settings = apis.read_config(config)
    settings.test_evaluator = {'type': 'LPCVCMetric'}
    scored = folder / 'scored.py'
    settings.dump(scored)
    metrics = test.main(
        [
            str(scored),
            str(file),
            '--work-dir',
            str(folder / f'test_{file.stem}'),
        ]
    )
    return {name: float(value) for name, value in metrics.items()}


def seconds_of(files: dict[str, Path], *, runs: int) -> dict[str, float]:
    """Return the median processor time of the network for one image."""
    calls = {}
    for name, file in files.items():
        session = open_session(str(file), runtime='onnxruntime', threads=1)
        size = read_metadata(read_onnx(file)).input_size
        inputs = example_inputs(session.ports, size=size, batch=1)
        calls[name] = partial(session, *inputs)
    timings = measure(calls, warmup=5, repeats=runs)
    return {t.path: t.to_dict()['cpu_ms'] / 1000 for t in timings}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Measure the score')
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('--recipe', default='w8a8')
    parser.add_argument('--num-images', type=int, default=64)
    parser.add_argument('--runs', type=int, default=50)
    parser.add_argument('--out', required=True, help='JSON file')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure one model."""
    args = parse_args(argv)
    load_projects()
    from edge_challenge import metric  # noqa: F401 - registers
    from edge_challenge.score import challenge_score

    folder = Path('work_dirs/edge_challenge') / Path(args.config).stem
    folder.mkdir(parents=True, exist_ok=True)
    files = export_files(args, folder)
    times = seconds_of(files, runs=args.runs)
    rows = []
    for name, file in files.items():
        metrics = accuracy(args.config, file, folder)
        rows.append(
            {
                'model': name,
                'accuracy': metrics[METRIC],
                'seconds_per_image': times[name],
                'score': challenge_score(metrics[METRIC], seconds=times[name]),
                'file_bytes': file.stat().st_size,
            }
        )
    result = {
        'config': args.config,
        'checkpoint': args.checkpoint,
        'sha256': file_digest(args.checkpoint),
        'command': 'python projects/edge_challenge/measure.py '
        f'{args.config} {args.checkpoint} --recipe {args.recipe} '
        f'--num-images {args.num_images} --runs {args.runs} --out {args.out}',
        'commit': current_commit(),
        'runtime': 'ONNX Runtime, one thread, median processor time',
        'rows': rows,
    }
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')
    print(json.dumps(rows, indent=1))
    return result


if __name__ == '__main__':
    main()
