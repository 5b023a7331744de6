"""Measure what quantization covers of one config of a host."""

from __future__ import annotations

import copy
import json
import resource
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor, nn

from taskptq.apis import load_quantized
from taskptq.bench.coverage.models import (
    build_offline,
    double_precision,
    drawn_batch,
    output_tensors,
    predict,
)
from taskptq.bench.coverage.plain import PlainQuantization
from taskptq.bench.coverage.process import reason_of
from taskptq.engine.pipeline import quantize_model
from taskptq.engine.recipe import Recipe
from taskptq.prepare import QConfig, prepare
from taskptq.recipes.merge import merge
from taskptq.recipes.names import resolve

# Heights and widths to try; some models need several strides.
SIZES = ((64, 96), (96, 128), (512, 512))
# Ranges of fresh weights need no search.
RECIPE = 'w8a8_minmax'
# Largest gap, relative, that rounding alone explains.
FAR = 1e-4
# What hosts raise if an image is too small or random weights make no sense.
MISFITS = (AssertionError, IndexError, RuntimeError, TypeError, ValueError)
# Most products that a record names.
MAX_NAMED = 8
MEBI = 2**20


def measure(
    path: str | Path,
    *,
    sizes: Sequence[Sequence[int]] = SIZES,
    steps: int = 0,
    light_after: float = float('inf'),
) -> dict[str, Any]:
    """Quantize the model of a config and describe what that covered.

    Args:
        path: Config.
        sizes: Heights and widths of the drawn image to try: the first that
            the model takes.
        steps: Steps of a reconstruction of each unit; 0 for none.
        light_after: Seconds of CPU for building and running the float model
            above which nothing is reconstructed.

    Returns:
        Plain types: ``macs`` with both, one and none of their operands
        quantized; ``uncovered`` products; ``off_gap``, the largest difference
        of outputs with quantizers off relative to the largest output, and
        ``off_gap_float64`` in double precision if that is large, and
        ``rounding_gap`` of the float model if that is large as well;
        ``sqnr`` of the quantized outputs in dB and ``plain_sqnr`` of an
        independent quantizer; ``same_bits`` after a file was written and
        read; ``file_ratio``, its size relative to float32; seconds of CPU and
        the peak of memory.
    """
    start = time.process_time()
    model, batch = smallest_running(Config.fromfile(path), sizes)
    with torch.no_grad():
        expected, plain = both_outputs(model, batch)
    seconds = time.process_time() - start
    record: dict[str, Any] = {
        'model': type(model).__name__,
        'size': list(batch['meta']['img_shape']),
        'float_seconds': round(seconds, 1),
        'plain_sqnr': sqnr(plain, expected),
        **off_gaps(model, batch, expected),
    }
    if steps and seconds > light_after:
        steps, record['light'] = 0, True
    record |= quantized_record(model, batch, expected, steps=steps)
    record['seconds'] = round(time.process_time() - start, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return record | {'peak_mebibytes': round(peak / MEBI)}


def smallest_running(
    config: Config, sizes: Sequence[Sequence[int]]
) -> tuple[nn.Module, dict[str, Any]]:
    """Return a model and a drawn image of the first size that it takes.

    Args:
        config: Config of a host.
        sizes: Heights and widths, smallest first.

    Raises:
        RuntimeError: If the outputs for the last size are not finite, or
            see ``build_offline``.
    """
    for size, full in [
        *((size, False) for size in sizes),
        *((size, True) for size in sizes[:-1]),
    ]:
        with suppress(*MISFITS):
            return running(config, size, full=full)
    return running(config, sizes[-1], full=True)


def running(
    config: Config, size: Sequence[int], *, full: bool
) -> tuple[nn.Module, dict[str, Any]]:
    """Return a model and a drawn image on which its outputs are finite.

    Args:
        config: Config of a host.
        size: Height and width.
        full: See ``build_offline``.

    Raises:
        RuntimeError: If they are not, with or without noise, or if there
            are none.
    """
    model = build_offline(config, size=size, full=full)
    batch = drawn_batch(model, size=size)
    with torch.no_grad():
        outputs = both_outputs(model, batch)
    if not all(x.isfinite().all() for found in outputs for x in found):
        raise RuntimeError('the float model has outputs that are not finite')
    if not any(x.any() for x in outputs[0]):
        raise RuntimeError('the float model has no outputs but zeros')
    return model, batch


def both_outputs(
    model: nn.Module, batch: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the outputs of a float model, and with plain quantization.

    Args:
        model: Float model.
        batch: From ``drawn_batch``.
    """
    expected = output_tensors(model, batch)
    with PlainQuantization():
        return expected, output_tensors(model, batch)


def quantized_record(
    model: nn.Module, batch: Any, expected: Sequence[Tensor], *, steps: int
) -> dict[str, Any]:
    """Quantize a model, write it, read it, and say what came of it.

    Args:
        model: Float model; changed in place.
        batch: From ``drawn_batch``.
        expected: Its float outputs.
        steps: Steps of a reconstruction of each unit; 0 for none.
    """
    num_bytes = sum(4 * p.numel() for p in model.parameters())
    fresh = copy.deepcopy(model)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / 'q.pth'
        report = quantize_model(
            model,
            [batch],
            recipe=recipe_of(steps),
            work_dir=folder,
            out=file,
            forward=predict,
        )
        text = (Path(folder) / 'swap_report.json').read_text(encoding='utf-8')
        record = covered(json.loads(text))
        record['file_ratio'] = round(file.stat().st_size / num_bytes, 3)
        with torch.no_grad():
            found = output_tensors(model, batch)
            load_quantized(fresh, file)
            record['same_bits'] = gap(output_tensors(fresh, batch), found) == 0
    record['sqnr'] = sqnr(found, expected)
    if steps:
        ran = report['reconstruction']
        record['units'] = len(ran['units'])
        record['breaks'] = ran['num_breaks']
        record['passes'] = round(ran['num_forwards'], 2)
        left = [unit for unit in ran['units'] if unit['fault']]
        record['left'] = {unit['name']: unit['fault'] for unit in left}
    return record


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


def off_gaps(
    model: nn.Module, batch: Any, expected: Sequence[Tensor]
) -> dict[str, Any]:
    """Return how far a prepared model with quantizers off is from float.

    Random weights may amplify rounding, and thresholds turn it into other
    boxes. Where the gap is large, it is taken in double precision as well: a
    real difference stays. So does a choice between equal values, such as the
    highest of some: the gap of the float model to itself, with each weight
    moved by two last places, tells it apart.

    Args:
        model: Float model; left as it is.
        batch: From ``drawn_batch``.
        expected: Its outputs.
    """
    gaps = {'off_gap': off_gap(copy.deepcopy(model), batch, expected)}
    if gaps['off_gap'] <= FAR:
        return gaps
    double = copy.deepcopy(model).double()
    batch = {**batch, 'inputs': batch['inputs'].double()}
    try:
        with torch.no_grad(), double_precision():
            return gaps | double_gaps(double, batch)
    except MISFITS as error:
        # Some operations of the hosts know single precision only.
        return {**gaps, 'float64_failure': reason_of(f'Error: {error}', 0)}


def double_gaps(model: nn.Module, batch: Any) -> dict[str, float]:
    """Return the gaps of a model in double precision.

    Args:
        model: Float model; changed in place.
        batch: From ``drawn_batch``.
    """
    expected = output_tensors(model, batch)
    # Some give other outputs each time, reading past their inputs.
    if gap(output_tensors(model, batch), expected) > 0:
        return {}
    moved = moved_by_rounding(copy.deepcopy(model))
    gaps = {'off_gap_float64': off_gap(model, batch, expected)}
    if gaps['off_gap_float64'] > FAR:
        gaps['rounding_gap'] = gap(output_tensors(moved, batch), expected)
    return gaps


@torch.no_grad()
def moved_by_rounding(model: nn.Module) -> nn.Module:
    """Move each weight up or down by two last places, seeded, in place.

    >>> moved = moved_by_rounding(nn.Linear(1, 1).double())
    >>> moved.weight.dtype
    torch.float64

    Args:
        model: Float model.
    """
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        signs = torch.randint(0, 2, weight.shape, generator=generator)
        places = 2 * torch.finfo(weight.dtype).eps
        weight.mul_(1 + places * (2 * signs.to(weight.dtype) - 1))
    return model


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
