"""Measure what quantization covers of one config of a host."""

from __future__ import annotations

import argparse
import copy
import json
import logging
import resource
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from taskptq.apis import load_quantized
from taskptq.bench.coverage.models import (
    build_offline,
    drawn_batch,
    output_tensors,
    predict,
)
from taskptq.engine.pipeline import quantize_model
from taskptq.engine.recipe import Recipe
from taskptq.prepare import QConfig, prepare
from taskptq.recipes.merge import merge
from taskptq.recipes.names import resolve

SIZE = (96, 128)
# Ranges of fresh weights need no search.
RECIPE = 'w8a8_minmax'
# Most products that a record names.
MAX_NAMED = 8
MEBI = 2**20


def measure(
    path: str | Path, *, size: Sequence[int] = SIZE, steps: int = 0
) -> dict[str, Any]:
    """Quantize the model of a config and describe what that covered.

    Args:
        path: Config.
        size: Height and width of the drawn image.
        steps: Steps of a reconstruction of each unit; 0 for none.

    Returns:
        Plain types: ``macs`` with both, one and none of their operands
        quantized; ``uncovered`` products; ``off_gap``, the largest difference
        of outputs with quantizers off relative to the largest output;
        ``sqnr`` of the quantized outputs in dB; ``same_bits`` after a file
        was written and read; ``file_ratio``, its size relative to float32;
        seconds and the peak of memory.
    """
    start = time.perf_counter()
    model = build_offline(Config.fromfile(path), size=size)
    batch = drawn_batch(model, size=size)
    with torch.no_grad():
        expected = output_tensors(model, batch)
    ready = time.perf_counter()
    num_bytes = sum(4 * p.numel() for p in model.parameters())
    record: dict[str, Any] = {
        'model': type(model).__name__,
        'float_seconds': round(ready - start, 1),
        'off_gap': off_gap(copy.deepcopy(model), batch, expected),
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / 'q.pth'
        fresh = copy.deepcopy(model)
        report = quantize_model(
            model,
            [batch],
            recipe=recipe_of(steps),
            work_dir=folder,
            out=file,
            forward=predict,
        )
        text = (Path(folder) / 'swap_report.json').read_text(encoding='utf-8')
        record |= covered(json.loads(text))
        record['file_ratio'] = round(file.stat().st_size / num_bytes, 3)
        with torch.no_grad():
            found = output_tensors(model, batch)
            load_quantized(fresh, file)
            record['same_bits'] = gap(output_tensors(fresh, batch), found) == 0
    record['sqnr'] = sqnr(found, expected)
    if steps:
        record['units'] = len(report['reconstruction']['units'])
    record['seconds'] = round(time.perf_counter() - start, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return record | {'peak_mebibytes': round(peak / MEBI)}


def recipe_of(steps: int) -> Recipe:
    """Return the recipe of the run.

    Args:
        steps: Steps of each unit; 0 rounds to nearest.
    """
    settings = merge(resolve(RECIPE), {'qconfig': {'products': True}})
    if steps:
        settings['reconstruction'] = {
            'steps': steps,
            'learn_scales': False,
            'skip_below': 0.0,
        }
    return Recipe.from_config(
        settings['qconfig'],
        reconstruction=settings.get('reconstruction'),
        loss=None,
        rewrites=None,
        calibration={'unreached': 'float'},
    )


def off_gap(model: nn.Module, batch: Any, expected: Sequence[Tensor]) -> float:
    """Return how far a prepared model with quantizers off is from float.

    Args:
        model: Float model; changed in place.
        batch: From ``drawn_batch``.
        expected: Its outputs.
    """
    qconfig = QConfig.from_dict(
        resolve(RECIPE)['qconfig'] | {'products': True}
    )
    prepare(model, qconfig, batch=batch, forward=predict)
    with torch.no_grad():
        return gap(output_tensors(model, batch), expected)


def gap(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Return max |difference| / max |expected|, inf if shapes differ.

    >>> gap([torch.tensor([1.0, 2.0])], [torch.tensor([1.0, 4.0])])
    0.5

    Args:
        found: Tensors.
        expected: What they are compared with.
    """
    if [x.shape for x in found] != [x.shape for x in expected]:
        return float('inf')
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        if b.numel():
            scale = float(b.abs().max()) or 1.0
            worst = max(worst, float((a - b).abs().max()) / scale)
    return worst


def sqnr(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float | None:
    """Return signal to noise in dB; None where shapes differ.

    >>> sqnr([torch.tensor([9.0, 1.0])], [torch.tensor([10.0, 0.0])])
    17.0

    Args:
        found: Tensors.
        expected: What they are compared with.
    """
    if [x.shape for x in found] != [x.shape for x in expected]:
        return None
    signal = sum(float(x.double().square().sum()) for x in expected)
    noise = sum(
        float((a.double() - b.double()).square().sum())
        for a, b in zip(found, expected, strict=True)
    )
    if not signal or not noise:
        return None
    return round(float(10 * torch.tensor(signal / noise).log10()), 1)


def covered(report: dict[str, Any]) -> dict[str, Any]:
    """Return what a report of the swap says of multiply-accumulates.

    Args:
        report: Content of ``swap_report.json``.
    """
    products = report['products']
    total = products['total'] or 1
    uncovered = [
        {
            'module': product['module'],
            'type': product['type'],
            'function': product['function'],
            'share': (product['one'] + product['none']) / total,
            'reason': product['reason'],
        }
        for product in products['products']
        if product['one'] or product['none']
    ]
    uncovered.sort(key=lambda product: -product['share'])
    keys = ('total', 'both', 'one', 'none', 'share')
    return {
        'macs': {key: products[key] for key in keys},
        'owners': len(report['decisions'].get('products', ())),
        'unreached': len(products['unreached']),
        'uncovered': uncovered[:MAX_NAMED],
    }


def main(argv: list[str] | None = None) -> None:
    """Measure one config and write its record as JSON.

    Args:
        argv: Config, file to write, and options.
    """
    parser = argparse.ArgumentParser(description='Measure one config')
    parser.add_argument('config')
    parser.add_argument('out')
    parser.add_argument('--size', type=int, nargs=2, default=SIZE)
    parser.add_argument('--steps', type=int, default=0)
    args = parser.parse_args(argv)
    logging.disable(logging.WARNING)
    try:
        record = measure(args.config, size=args.size, steps=args.steps)
    finally:
        logging.disable(logging.NOTSET)
    Path(args.out).write_text(json.dumps(record), encoding='utf-8')


if __name__ == '__main__':
    main()
