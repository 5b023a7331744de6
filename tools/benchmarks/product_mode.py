"""What it costs to see the products in a module's own code.

The quantizers of these products are off in both turns. In one, their owners
enter the mode, look up each call and find its point; in the other they are
idle and run as the float module does. So the arithmetic of the grids, which
every way to quantize a product needs, is not in the difference.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import nn

from taskptq.bench.coverage.models import predict
from taskptq.bench.coverage.one import SIZES, recipe_of, smallest_running
from taskptq.bench.coverage.zoo import families, smallest
from taskptq.core import Quantizer
from taskptq.engine.pipeline import quantize_model
from taskptq.modules.product_mode import all_products
from taskptq.modules.products import QuantProducts

TARGET = 1.05
# Small and large heads, one and many products, loops and layers read past.
FAMILIES = (
    ('mmseg', 'segnext'),
    ('mmseg', 'emanet'),
    ('mmseg', 'ocrnet'),
    ('mmdet', 'rtmdet'),
    ('mmdet', 'tood'),
)


def default_configs() -> list[Path]:
    """Return the smallest config of each family."""
    return [smallest(families(host)[name]) for host, name in FAMILIES]


def quantized(path: Path) -> tuple[nn.Module, Any]:
    """Return a quantized model with random weights, and a drawn image.

    Args:
        path: Config of a host.
    """
    model, batch = smallest_running(Config.fromfile(str(path)), SIZES)
    with tempfile.TemporaryDirectory() as folder:
        quantize_model(
            model,
            [batch],
            recipe=recipe_of(0),
            work_dir=folder,
            out=Path(folder) / 'q.pth',
            forward=predict,
        )
    return model, batch


@torch.no_grad()
def turns(
    model: nn.Module,
    batch: Any,
    owned: Sequence[QuantProducts],
    *,
    repeats: int,
) -> dict[str, list[float]]:
    """Return the seconds of CPU of forward passes, idle and seeing in turns.

    Args:
        model: Quantized model.
        batch: Its image.
        owned: The products of its owners; their quantizers are off.
        repeats: Timed passes of each, after two to warm up.
    """
    seconds: dict[str, list[float]] = {'idle': [], 'seeing': []}
    for turn in range(repeats + 2):
        # Neither is always the one that finds warm caches.
        for name in sorted(seconds, reverse=bool(turn % 2)):
            for products in owned:
                # Only what is settled may be idle.
                products.settled = name == 'idle'
            start = time.process_time()
            predict(model, batch)
            if turn >= 2:
                seconds[name].append(time.process_time() - start)
    return seconds


def measure_one(path: Path, *, repeats: int) -> dict[str, Any]:
    """Measure one config.

    Args:
        path: Config of a host.
        repeats: Timed passes of each.

    Raises:
        ValueError: If no module of the model has products of its own.
    """
    model, batch = quantized(path)
    owned = [products for _, products in all_products(model)]
    if not owned:
        raise ValueError(f'{path.name}: all its products have counterparts')
    for products in owned:
        for child in products.children():
            if isinstance(child, Quantizer):
                child.enabled = False
    counts = [0]
    handles = [
        products.register_forward_pre_hook(lambda *_: counts.append(1))
        for products in owned
    ]
    turns(model, batch, owned, repeats=-1)
    for handle in handles:
        handle.remove()
    seconds = turns(model, batch, owned, repeats=repeats)
    ratios = [
        seeing / idle
        for seeing, idle in zip(
            seconds['seeing'], seconds['idle'], strict=True
        )
    ]
    return {
        'config': path.name,
        'owners': len(owned),
        'products': sum(counts),
        'median_seconds': {
            name: statistics.median(values) for name, values in seconds.items()
        },
        'ratio': statistics.median(ratios),
    }


def measure(configs: Sequence[str], *, repeats: int) -> dict[str, Any]:
    """Measure configs of the hosts, on one thread.

    Args:
        configs: Paths; none for some of the hosts' own.
        repeats: Timed passes of each.

    Raises:
        ValueError: See :func:`measure_one`.
    """
    torch.set_num_threads(1)
    paths = [Path(config) for config in configs] or default_configs()
    models = [measure_one(path, repeats=repeats) for path in paths]
    worst = max(model['ratio'] for model in models)
    return {
        'repeats': repeats,
        'models': models,
        'ratio': worst,
        'target': TARGET,
        'reached': worst <= TARGET,
    }


def lines(result: dict[str, Any]) -> list[str]:
    """Return the result as text."""
    text = [f'medians of {result["repeats"]} forward passes in turns:']
    for model in result['models']:
        seconds = model['median_seconds']
        text.append(
            f'  {model["config"]:<44} {model["products"]:3} products  idle '
            f'{seconds["idle"] * 1e3:7.1f} ms  ratio {model["ratio"]:.3f}'
        )
    return [*text, f'  worst {result["ratio"]:.3f} (target {TARGET})']
