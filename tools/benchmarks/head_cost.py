"""Inference time of a grid head against the plain head it replaces."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from mmdet.structures import DetDataSample
from torch import nn

from benchmarks import run_setup
from taskptq.apis import build_model

TARGET = 1.1
HEADS = ('rpn_head', 'roi_head', 'bbox_head')
Work = Callable[[], Any]


def build(config_path: str, checkpoint: str | None) -> nn.Module:
    """Build a detector; without a checkpoint its weights are random."""
    config = run_setup.read_config(config_path)
    if checkpoint is not None:
        return run_setup.load_float(config, checkpoint)
    with run_setup.single_seed():
        return build_model(config)


def blank_samples(num_images: int, *, size: tuple[int, int]) -> list[Any]:
    """Return samples without annotations for images of a size (h, w)."""
    metainfo = {
        'img_shape': size,
        'ori_shape': size,
        'pad_shape': size,
        'batch_input_shape': size,
        'scale_factor': (1.0, 1.0),
    }
    return [DetDataSample(metainfo=metainfo) for _ in range(num_images)]


def head_work(
    model: nn.Module, *, features: Any, proposals: Any, samples: list[Any]
) -> dict[str, dict[str, Work]]:
    """Return the functions to time: head -> stage -> function.

    ``forward`` runs the head's layers, ``predict`` also decodes boxes and
    suppresses duplicates, as an evaluation does.

    Args:
        model: Detector of one or two stages.
        features: Maps of the neck, the same for all models.
        proposals: Regions for a second stage, the same for all models.
        samples: One for each image.
    """
    work: dict[str, dict[str, Work]] = {}
    for name in HEADS:
        head = getattr(model, name, None)
        if head is None:
            continue
        if name == 'roi_head':
            work[name] = {
                'forward': lambda h=head: h.forward(
                    features, proposals, samples
                ),
                'predict': lambda h=head: h.predict(
                    features, proposals, samples
                ),
            }
        else:
            work[name] = {
                'forward': lambda h=head: h(features),
                'predict': lambda h=head: h.predict(features, samples),
            }
    return work


@torch.no_grad()
def by_turns(work: Mapping[str, Work], *, repeats: int) -> dict[str, float]:
    """Return the median seconds of each function, called in turns.

    Args:
        work: Name -> function.
        repeats: Timed calls of each, after one warm-up call.
    """
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(repeats + 1):
        for name, function in work.items():
            start = time.perf_counter()
            function()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(v) for name, v in seconds.items()}


@torch.no_grad()
def inputs_of(
    model: nn.Module, *, batch_size: int, size: tuple[int, int]
) -> dict[str, Any]:
    """Make the heads' inputs from noise images.

    Args:
        model: Detector whose backbone, neck and RPN are used.
        batch_size: Number of images.
        size: Height and width of the images.
    """
    samples = blank_samples(batch_size, size=size)
    with run_setup.single_seed():
        images = torch.randn(batch_size, 3, *size)
    features = model.extract_feat(images)
    proposals = None
    if getattr(model, 'roi_head', None) is not None:
        proposals = model.rpn_head.predict(features, samples, rescale=False)
    return {'features': features, 'proposals': proposals, 'samples': samples}


def measure(
    config_path: str,
    *,
    plain: str,
    repeats: int,
    batch_size: int,
    size: tuple[int, int],
    checkpoint: str | None = None,
    plain_checkpoint: str | None = None,
) -> dict[str, Any]:
    """Measure the heads of both models on the same features.

    Args:
        config_path: Config of the model with grid heads.
        plain: Config of the model with plain heads.
        repeats: Timed calls of each.
        batch_size: Images per call.
        size: Height and width of the images.
        checkpoint: Weights of the grid heads; None leaves them random.
        plain_checkpoint: Weights of the plain heads; None leaves them random.

    Raises:
        ValueError: If the models do not have the same heads.
    """
    models = {
        'plain': build(plain, plain_checkpoint),
        'grid': build(config_path, checkpoint),
    }
    inputs = inputs_of(models['plain'], batch_size=batch_size, size=size)
    work = {name: head_work(m, **inputs) for name, m in models.items()}
    if work['plain'].keys() != work['grid'].keys():
        raise ValueError(
            f'{config_path} has the heads {sorted(work["grid"])}, but {plain} '
            f'has {sorted(work["plain"])}: give configs of the same detector'
        )
    heads = {
        head: {
            stage: by_turns(
                {name: work[name][head][stage] for name in models},
                repeats=repeats,
            )
            for stage in ('forward', 'predict')
        }
        for head in work['plain']
    }
    totals = {
        name: sum(stages['predict'][name] for stages in heads.values())
        for name in models
    }
    ratio = totals['grid'] / totals['plain']
    return {
        'config': config_path,
        'plain_config': plain,
        'checkpoint': checkpoint,
        'plain_checkpoint': plain_checkpoint,
        'batch_size': batch_size,
        'size': list(size),
        'repeats': repeats,
        'median_seconds': heads,
        'head_weights': {
            name: sum(
                p.numel()
                for head in heads
                for p in getattr(m, head).parameters()
            )
            for name, m in models.items()
        },
        'ratio': ratio,
        'target': TARGET,
        'reached': ratio <= TARGET,
    }


def lines(result: dict[str, Any]) -> list[str]:
    """Return the result as text."""
    height, width = result['size']
    text = [
        f'heads on {result["batch_size"]} images of {height}x{width}, '
        f'medians of {result["repeats"]} calls in turns:'
    ]
    for head, stages in result['median_seconds'].items():
        for stage, seconds in stages.items():
            ratio = seconds['grid'] / seconds['plain']
            text.append(
                f'  {head:<9} {stage:<8} plain {seconds["plain"] * 1e3:8.1f} '
                f'ms  grid {seconds["grid"] * 1e3:8.1f} ms  ratio {ratio:.2f}'
            )
    weights = result['head_weights']
    return [
        *text,
        f'  weights of the heads: {weights["plain"]} and {weights["grid"]}',
        f'  ratio     {result["ratio"]:.2f} (target at most {TARGET})',
    ]
